"""A model folder's own record: which file it was made of, and the sha256 of everything in it. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kgcli.errors import MissingError
from kgcli.weights.hub import sha256_of

RECORD_NAME = "weights.json"
UNRECORDED = (RECORD_NAME, "README.md")  # the card is for people to write in


def write_record(folder: Path, source: Mapping[str, Any]) -> None:
    """Hash the files that make the model in a folder and note the source that it was converted from."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    content = {
        "source": dict(source),
        "files": {
            name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
            for name, path in files.items()
            if name not in UNRECORDED
        },
    }
    (folder / RECORD_NAME).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a folder, or None where it has none.

    Raises: MissingError where it is damaged.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        if not all(isinstance(entry["sha256"], str) for entry in content["files"].values()):
            raise TypeError
        dict(content["source"])
        return dict(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MissingError(f"{path} is damaged; fetch or convert the model again") from None


def differing_files(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Name the files that are missing or not the ones that were recorded, each with the reason."""
    faults = []
    for name, entry in record["files"].items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif sha256_of(path) != entry["sha256"]:
            faults.append(f"{name} has another sha256 than when it was written")
    return faults
