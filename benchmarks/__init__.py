"""Benchmarks: each script compares implementations, checks every answer, and prints and saves the measurements."""
