"""What ended a run: the first failure, its cause, and what to change; no torch, no processes."""
