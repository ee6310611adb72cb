"""Sweeps on SLURM: launch profiles, resource classes, and the jobs of a launch from submission to their end."""
