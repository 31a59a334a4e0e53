"""Signs of a run, and faults that end it: validation, trackers, the bar, broken samples and steps."""
