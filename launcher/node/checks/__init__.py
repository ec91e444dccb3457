"""Are all nodes of a job fit for it? Asked before the model is built; no torch here."""
