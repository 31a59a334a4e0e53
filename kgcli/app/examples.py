"""The example images that ship with the package, as the page sends them."""

from __future__ import annotations

import base64
from typing import Any

from kgcli.weights.shipped import find_shipped


def example_item(name: str) -> dict[str, Any]:
    """Return an example image of the package as an upload."""
    path = find_shipped(f"nano/{name}")
    assert path is not None, f"{name} ships with the package"
    return {"name": name, "data": base64.b64encode(path.read_bytes()).decode(), "weight": 1.0, "crop": None}
