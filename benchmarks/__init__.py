"""Measures Sandgate side by side with what is installed here. See `python -m benchmarks --help`."""
