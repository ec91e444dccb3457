"""The side effects: writing a run directory, starting the job, following it."""
