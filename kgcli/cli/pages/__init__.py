"""Commands that make a page: `kg explain` and `kg app`."""
