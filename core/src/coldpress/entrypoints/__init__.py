"""Entry points: thin functions that turn arguments into a job."""
