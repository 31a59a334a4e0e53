"""What a run shows of itself, and what it stops at: validation, trackers, the bar, steps that are not finite."""
