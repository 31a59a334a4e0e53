"""Metrics: pure functions of numbers and feature vectors."""
