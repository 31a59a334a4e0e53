"""Checks before a run: its data, what it would take on this machine, and schemas for editors."""
