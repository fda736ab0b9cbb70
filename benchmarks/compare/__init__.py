"""What compare.py runs in processes of their own, one measured compression or evaluation each, and its jobs."""
