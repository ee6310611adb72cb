"""Edits whose desired changes at many tokens are aggregated by least squares into one shift per matrix (Tan et al. 2024).

MALMEN and EMSEdit learn the desired changes with a hypernetwork, and UltraEdit computes them without training.
"""
