"""Fuzzing of everything that reads what strangers send; see :mod:`fuzz.targets`."""
