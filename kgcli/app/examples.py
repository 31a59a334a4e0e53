"""The example images that ship with the package, as the page sends them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from kgcli.weights.shipped import find_shipped
from kgcli.world.sizes import RECIPES


def example_path(name: str, world: int) -> Path:
    """Return the file of an example image of a world (64 or 128)."""
    path = find_shipped(f"{RECIPES[world]}/{name}")
    assert path is not None, f"{name} ships with the package"
    return path


def example_item(name: str, world: int) -> dict[str, Any]:
    """Return an example image of a world (64 or 128) as an upload."""
    data = base64.b64encode(example_path(name, world).read_bytes()).decode()
    return {"name": name, "data": data, "weight": 1.0, "crop": None}
