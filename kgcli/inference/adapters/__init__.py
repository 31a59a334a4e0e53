"""LoRA files and ControlNets: parsed, checked and attached to a decoder."""
