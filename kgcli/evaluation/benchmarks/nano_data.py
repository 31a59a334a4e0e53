"""The photos of the nano suites as folders on disk, rendered once and then checked. No torch.

FOLDER/<subject>/00.png ...        nano-dreambench: its photos, the input first
FOLDER/masks/<subject>/00.png ...  where the subject is
FOLDER/real/000/000000.png ...     nano-coco: the true pictures, those of the captions first
FOLDER/data.json                   suite, version and the hash of every file
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.benchmarks.nano import (
    COCO,
    DREAMBENCH,
    INPUT,
    NUM_REAL,
    SIZE,
    VERSION,
    caption_of,
    photo_specs,
    subjects,
)
from kgcli.files import sha256
from kgcli.runtime import user_cache
from kgcli.world.spec import render

INDEX = "data.json"
MASKS = "masks"
Pictures = Iterator[tuple[str, Image.Image]]  # name below the folder, picture


@dataclass(frozen=True)
class NanoData:
    """A folder that holds the pictures of a nano suite."""

    folder: Path
    photos: Mapping[str, tuple[str, ...]]  # subject -> photos below the folder; of nano-coco all under ""
    sha256: str  # over all files

    def input_of(self, subject: str) -> str:
        """The photo that a method sees, below the folder."""
        return f"{subject}/{INPUT}"

    @property
    def masks(self) -> Path:
        """The folder of the masks, laid out as that of the photos."""
        return self.folder / MASKS


def cached_folder(suite: str) -> Path:
    """Return the folder of a nano suite's images in the user's cache."""
    return user_cache() / f"{suite}-{VERSION}"


def dreambench_data(folder: Path) -> NanoData:
    """The photos of `nano-dreambench` in a folder, rendered where it is not there yet.

    Raises: UsageError where the folder holds something else, MissingError where files of it are gone or damaged.
    """
    index = _open_or_make(folder, {"suite": DREAMBENCH, "version": VERSION, "size": SIZE}, _dreambench_pictures)
    photos = {name: tuple(path for path in index if path.startswith(f"{name}/")) for name in subjects()}
    return NanoData(folder, photos, _hash_of(index))


def coco_data(folder: Path, num: int = NUM_REAL) -> NanoData:
    """The real set of `nano-coco` in a folder, rendered where it is not there yet. Raises as `dreambench_data`."""
    facts = {"suite": COCO, "version": VERSION, "size": SIZE, "num": num}
    index = _open_or_make(folder, facts, lambda: _coco_pictures(num))
    return NanoData(folder, {"": tuple(index)}, _hash_of(index))


def _dreambench_pictures() -> Pictures:
    for name in subjects():
        for number, spec in enumerate(photo_specs(name)):
            rendered = render(spec, SIZE)
            yield f"{name}/{number:02d}.png", rendered.picture
            yield f"{MASKS}/{name}/{number:02d}.png", rendered.masks[0]


def _coco_pictures(num: int) -> Pictures:
    for index in range(num):
        yield f"real/{index // 1000:03d}/{index:06d}.png", render(caption_of(index)[1], SIZE).picture


def _open_or_make(folder: Path, facts: dict[str, Any], make: Callable[[], Pictures]) -> dict[str, str]:
    """The hash of every file by its name, of a folder that is there and whole or is rendered now."""
    folder = folder.expanduser()
    if not (folder / INDEX).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is there and holds no {facts['suite']} data; choose another folder")
        _render(folder, facts, make())
    held, files = _read(folder / INDEX)
    if held != facts:
        names = ", ".join(
            f"{name} {held.get(name)}, not {value}" for name, value in facts.items() if held.get(name) != value
        )
        raise UsageError(f"{folder} holds other data ({names}); choose another folder")
    damaged = [name for name, digest in files.items() if not _is_whole(folder / name, digest)]
    if damaged:
        raise MissingError(
            f"{folder}: {len(damaged)} of {len(files)} files are gone or changed, as {damaged[0]}; "
            "remove the folder and it is made anew"
        )
    return files


def _render(folder: Path, facts: dict[str, Any], pictures: Pictures) -> None:
    """All files under another name, then renamed: no one ever sees half of them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    try:
        files = {}
        for name, picture in pictures:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(partial / name)
            files[name] = sha256(partial / name)
        (partial / INDEX).write_text(json.dumps({**facts, "files": files}, indent=1) + "\n", "utf-8")
        partial.chmod(0o755)
        try:
            partial.replace(folder)  # takes the place of an empty folder too
        except OSError:
            if not (folder / INDEX).is_file():  # else another process was faster, with the same bytes
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        facts = json.loads(path.read_text("utf-8"))
        return facts, dict(facts.pop("files"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise MissingError(f"{path} is damaged ({error!r}); remove its folder and it is made anew") from None


def _is_whole(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _hash_of(files: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name, one in files.items():
        digest.update(f"{name} {one}\n".encode())
    return digest.hexdigest()
