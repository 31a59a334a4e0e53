"""Weight files: reading, converting, fetching and saving."""
