"""Training: the loop, its stages and checkpoints."""
