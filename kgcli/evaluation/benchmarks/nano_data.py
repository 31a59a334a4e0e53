"""The photos of the nano suites as folders on disk, rendered once and then checked.

FOLDER/<subject>/00.png ...        nano-dreambench: its photos, the input first
FOLDER/masks/<subject>/00.png ...  masks of the subject
FOLDER/real/000/000000.png ...     nano-coco: the true images, those of the captions first
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
from kgcli.evaluation.benchmarks.nano import COCO, DREAMBENCH, INPUT, NUM_REAL, caption_of, photo_specs, subjects
from kgcli.evaluation.benchmarks.nano_world import VERSION
from kgcli.files import sha256
from kgcli.runtime import user_cache
from kgcli.world.rendering import render

INDEX = "data.json"
MASKS = "masks"
Images = Iterator[tuple[str, Image.Image]]  # name below the folder, image


@dataclass(frozen=True)
class NanoData:
    """A folder of a nano suite's images."""

    folder: Path
    photos: Mapping[str, tuple[str, ...]]  # subject -> photos below the folder; of nano-coco all under ""
    sha256: str  # over all files

    def input_of(self, subject: str) -> str:
        """Return the input photo of a subject, relative to the folder."""
        return f"{subject}/{INPUT}"

    @property
    def masks(self) -> Path:
        """Folder of the masks, laid out as the photos."""
        return self.folder / MASKS


def cached_folder(suite: str) -> Path:
    """Return the folder of a nano suite's images in the user's cache."""
    return user_cache() / f"{suite}-{VERSION}"


def dreambench_data(folder: Path) -> NanoData:
    """Return the photos of `nano-dreambench` in a folder, rendered first if it does not exist.

    Raises: UsageError if the folder holds other data, MissingError for missing or damaged files.
    """
    index = _open_or_make(folder, {"suite": DREAMBENCH, "version": VERSION}, _dreambench_images)
    photos = {name: tuple(path for path in index if path.startswith(f"{name}/")) for name in subjects()}
    return NanoData(folder, photos, _hash_of(index))


def coco_data(folder: Path, num: int = NUM_REAL) -> NanoData:
    """Return the real set of `nano-coco` in a folder, rendered first if absent. Raises as `dreambench_data`."""
    settings = {"suite": COCO, "version": VERSION, "num": num}
    index = _open_or_make(folder, settings, lambda: _coco_images(num))
    return NanoData(folder, {"": tuple(index)}, _hash_of(index))


def _dreambench_images() -> Images:
    for name in subjects():
        for number, spec in enumerate(photo_specs(name)):
            rendered = render(spec)
            yield f"{name}/{number:02d}.png", rendered.image
            yield f"{MASKS}/{name}/{number:02d}.png", rendered.masks[0]


def _coco_images(num: int) -> Images:
    for index in range(num):
        yield f"real/{index // 1000:03d}/{index:06d}.png", render(caption_of(index)[1]).image


def _open_or_make(folder: Path, settings: dict[str, Any], make: Callable[[], Images]) -> dict[str, str]:
    """Return the hashes of a folder's files by name, after checking or rendering them."""
    folder = folder.expanduser()
    if not (folder / INDEX).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} exists and holds no {settings['suite']} data; choose another folder")
        _render(folder, settings, make())
    held, files = _read(folder / INDEX)
    if held != settings:
        names = ", ".join(
            f"{name} {held.get(name)}, not {value}" for name, value in settings.items() if held.get(name) != value
        )
        raise UsageError(f"{folder} holds other data ({names}); choose another folder")
    damaged = [name for name, digest in files.items() if not _is_whole(folder / name, digest)]
    if damaged:
        raise MissingError(
            f"{folder}: {len(damaged)} of {len(files)} files are missing or changed, such as {damaged[0]}; "
            "remove the folder to render it again"
        )
    return files


def _render(folder: Path, settings: dict[str, Any], images: Images) -> None:
    """Render all files into a temporary folder and rename it, so that a partial folder is never visible."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    try:
        files = {}
        for name, image in images:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(partial / name)
            files[name] = sha256(partial / name)
        (partial / INDEX).write_text(json.dumps({**settings, "files": files}, indent=1) + "\n", "utf-8")
        partial.chmod(0o755)
        try:
            partial.replace(folder)  # also replaces an empty folder
        except OSError:
            if not (folder / INDEX).is_file():  # else another process was faster, with equal bytes
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        settings = json.loads(path.read_text("utf-8"))
        return settings, dict(settings.pop("files"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise MissingError(f"{path} is damaged ({error!r}); remove its folder to render it again") from None


def _is_whole(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _hash_of(files: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name, one in files.items():
        digest.update(f"{name} {one}\n".encode())
    return digest.hexdigest()
