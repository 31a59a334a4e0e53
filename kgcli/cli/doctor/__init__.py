"""`kg doctor` and `kg env`: what this machine has, and whether it suits."""
