"""What a run shows of itself, and what it stops at: validation, trackers, the bar, broken samples and steps."""
