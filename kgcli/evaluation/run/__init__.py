"""A run: its plan, its images, its scores, resumable."""
