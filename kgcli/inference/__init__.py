"""From an interleaved prompt to an image."""
