"""Hashes of weight files, kept in the user's cache: reading gigabytes for a hash takes seconds.

A kept hash is used only while path, size, inode and both times of every file are the same. Times have a granularity
(2 s on some file systems): a file that was changed just before it was hashed could change again within the same tick,
so its hash is not kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kgcli.errors import KgError
from kgcli.files import make_folder, write_whole
from kgcli.reading import read_json
from kgcli.runtime import user_cache

FORMAT = 1
SMALL = 64 * 2**20  # bytes; less is hashed faster than anyone notices
SETTLED = 3_000_000_000  # nanoseconds since the last change, more than any file system's granularity
MAX_BYTES = 2**20  # of a cache file
_log = logging.getLogger(__name__)


def hash_files(paths: Sequence[Path]) -> str:
    """Return one sha256 over the bytes of files, in the given order.

    Example:
        >>> hash_files([])[:8]
        'e3b0c442'
    """
    before = _state(paths)
    if sum(entry["size"] for entry in before) < SMALL:
        return _hash(paths)
    kept = _cache_file(before)
    if (known := _read(kept, before)) is not None:
        return known
    started = time.time_ns()
    found = _hash(paths)
    settled = all(max(entry["mtime"], entry["ctime"]) < started - SETTLED for entry in before)
    if settled and _state(paths) == before:
        _keep(kept, {"format": FORMAT, "files": before, "sha256": found})
    return found


def _hash(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _state(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return everything the system says of files; times in nanoseconds."""
    return [
        {
            "path": os.fsencode(path.resolve()).hex(),
            "size": stat.st_size,
            "inode": stat.st_ino,
            "mtime": stat.st_mtime_ns,
            "ctime": stat.st_ctime_ns,  # which, unlike mtime, no program sets back
        }
        for path, stat in ((path, path.stat()) for path in paths)
    ]


def _cache_file(state: Sequence[dict[str, Any]]) -> Path:
    """Return the file that holds the hash of these paths, one for each list of files."""
    name = hashlib.sha256("\n".join(str(entry["path"]) for entry in state).encode()).hexdigest()
    return user_cache() / "hashes" / f"{name[:32]}.json"


def _read(file: Path, state: Sequence[dict[str, Any]]) -> str | None:
    """Return the kept hash, None if there is none for exactly this state."""
    try:
        kept = read_json(file, max_bytes=MAX_BYTES)
    except KgError:
        return None
    if not isinstance(kept, dict) or kept.get("format") != FORMAT or kept.get("files") != state:
        return None
    found = kept.get("sha256")
    is_hash = isinstance(found, str) and len(found) == 64 and set(found) <= set("0123456789abcdef")
    return found if is_hash else None


def _keep(file: Path, values: dict[str, object]) -> None:
    """Write a cache file; without room or rights for one the next call hashes again."""
    try:
        make_folder(file.parent)
        write_whole(file, json.dumps(values))
    except KgError as error:
        _log.info("the hash of weights is not kept: %s", error)
