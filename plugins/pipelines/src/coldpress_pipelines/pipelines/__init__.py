"""One pipeline a file."""
