"""From a plan to the texts of the files that run it; pure, without files or processes."""
