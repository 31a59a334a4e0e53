"""Networks that turn images and texts into the vectors that metrics compare."""
