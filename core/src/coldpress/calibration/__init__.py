"""Calibration: data sets to batches, and what is observed while batches run through a model."""
