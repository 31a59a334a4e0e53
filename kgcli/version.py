"""The package's version, and nothing that imports anything."""

__version__ = "0.1.0"
