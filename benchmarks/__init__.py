"""Measurements, one command each: ``python -m benchmarks.step`` and so on. Results and machine in RESULTS.md.

Every comparison is measured in one run, against peers doing the same work; medians of interleaved repetitions.
"""
