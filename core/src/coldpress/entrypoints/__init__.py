"""The doors: thin functions that turn arguments into a run."""
