"""The measured processes of gpu.py."""
