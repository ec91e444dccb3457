"""What runs on the nodes of a job beside the workers; without torch."""
