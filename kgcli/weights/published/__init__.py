"""Published checkpoints: found, fetched, recognised and converted."""
