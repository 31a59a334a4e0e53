"""Speed on this machine: generating, encoding and training against the same work done bare."""
