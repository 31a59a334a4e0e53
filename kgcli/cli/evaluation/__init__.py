"""The commands below `kg eval`, and `kg reproduce`."""
