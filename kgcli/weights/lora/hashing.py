"""The hash that the web UI and Civitai use for a LoRA: AutoV3, the sha256 of a safetensors file without its header."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

BLOCK = 1 << 20  # bytes read at once


def hash_tensors(path: Path) -> str:
    """Return the sha256 of all bytes after the header, so that editing metadata does not change it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        (header_size,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + header_size)
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
