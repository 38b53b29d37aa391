"""Measurements of sharedmask against what it replaces: ``python -m benchmarks core``."""
