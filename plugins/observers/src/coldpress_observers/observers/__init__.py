"""One observer a file."""
