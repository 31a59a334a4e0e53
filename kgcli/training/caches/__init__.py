"""Caches of training runs: what frozen parts make of the rows of a finite source."""
