"""Looking at shards, ours and those of other programs: checks, statistics, and a contact sheet."""
