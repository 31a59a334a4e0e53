"""What a run would do, checked and counted without its weights in memory."""
