"""LoRA files and ControlNets: named by a user, checked, and put on a decoder."""
