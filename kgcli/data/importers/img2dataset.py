"""The output of img2dataset, as LAION, COYO, CC3M and CC12M come: tar shards, or folders of files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kgcli.data.images import MAX_BYTES
from kgcli.data.importers.base import Filled, ImportOptions, Item, broken, existing, pair_of, size_of
from kgcli.data.shards.tars import walk_tar
from kgcli.errors import MissingError
from kgcli.reading import parse_json, read_bytes

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
Parts = dict[str, bytes]  # suffix -> content of the files of one key


class Img2Dataset:
    """Captioned images of tars, by shard and key; a tar that is cut short gives what comes before the cut."""

    name = "img2dataset"
    layout = "img2dataset's output (LAION, COYO, CC3M, CC12M): tars, or folders of .jpg, .txt and .json"
    uses: frozenset[str] = frozenset()

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the samples of all shards."""
        folder = existing(source, what="folder or tar")
        tars = [folder] if folder.is_file() else sorted(folder.glob("*.tar"))
        for tar in tars:
            yield from _of_tar(tar)
        folders = [] if tars else [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
        num = 0
        for place in folders:
            for path in sorted(path for path in place.iterdir() if path.suffix.lower() in IMAGES):
                num += 1
                yield Item(f"{place.name}/{path.stem}", partial(_read_files, path), size_of(path))
        if not tars and not num:
            raise MissingError(f"{folder} holds no tars and no images of img2dataset")


def parts_of_tar(path: Path) -> Iterator[tuple[str, Parts | MissingError]]:
    """Yield the files of each key of a WebDataset tar; where it is damaged, an error and no more."""
    key = "?"
    try:
        for found in walk_tar(path):
            key = found.key
            yield key, {f".{suffix.lower()}": data for suffix, data in found.members.items()}
    except MissingError as error:
        yield key, error


def _of_tar(path: Path) -> Iterator[Item]:
    for key, parts in parts_of_tar(path):
        origin = f"{path.name} {key}"
        if isinstance(parts, MissingError):
            yield broken(origin, parts)
        else:
            yield Item(origin, partial(_read, parts, origin), sum(map(len, parts.values())))


def _read_files(path: Path) -> Iterable[Filled]:
    parts = {}
    for suffix in (path.suffix, ".txt", ".json"):
        if (beside := path.with_suffix(suffix)).is_file():
            parts[suffix.lower()] = read_bytes(beside, max_bytes=MAX_BYTES)
    return _read(parts, f"{path.parent.name}/{path.stem}")


def _read(parts: Parts, origin: str) -> Iterable[Filled]:
    told: dict[str, Any] = {}
    if ".json" in parts:
        value = parse_json(parts[".json"], name=f"{origin}.json")
        told = value if isinstance(value, dict) else {}
    image = next((parts[suffix] for suffix in IMAGES if suffix in parts), None)
    if image is None:
        status = told.get("error_message") or told.get("status") or "no image"
        raise MissingError(f"{origin} was not downloaded: {str(status)[:200]}")
    caption = parts[".txt"].decode("utf-8", "replace") if ".txt" in parts else told.get("caption")
    if not isinstance(caption, str):
        raise MissingError(f"{origin} has no caption")
    url = told.get("url")
    return [pair_of(image, caption.strip(), f"{origin} {url}" if isinstance(url, str) else origin)]
