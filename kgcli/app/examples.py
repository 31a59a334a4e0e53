"""The example images that ship with the package, as the page sends them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from kgcli.weights.shipped import find_shipped


def example_path(name: str) -> Path:
    """Return the file of an example image."""
    path = find_shipped(f"nano/{name}")
    assert path is not None, f"{name} ships with the package"
    return path


def example_item(name: str) -> dict[str, Any]:
    """Return an example image as an upload."""
    data = base64.b64encode(example_path(name).read_bytes()).decode()
    return {"name": name, "data": data, "weight": 1.0, "crop": None}
