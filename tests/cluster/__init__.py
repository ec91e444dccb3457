"""The project's own Slurm cluster, and the tests that run on it."""
