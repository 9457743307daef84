"""Metrics: NumPy in, NumPy out."""
