"""Sources of training samples."""
