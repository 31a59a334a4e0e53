"""Benchmarks: which prompts are evaluated, on which data."""
