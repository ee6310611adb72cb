"""Edited models outside a suite: open one from a cell, export, load, query or serve it, or make one in Python."""
