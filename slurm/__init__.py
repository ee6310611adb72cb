"""The SLURM launcher: profiles, arrays, the retry policy, and the driver that follows a launch to its end."""
