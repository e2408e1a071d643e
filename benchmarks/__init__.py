"""Benchmarks: each script asks a few questions, checks every answer, and prints and saves what it measured."""
