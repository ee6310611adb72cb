"""Running a plan: launch profiles, jobs, the runner of a cell, checkpoints of sequences, cost and progress."""
