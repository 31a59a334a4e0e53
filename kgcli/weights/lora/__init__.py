"""LoRA files of every layout, read into one form."""
