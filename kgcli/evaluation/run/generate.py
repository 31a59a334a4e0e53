"""The pictures of a run: drawn unit by unit, in one process or many, stopped and taken up again. No torch.

Units are shared out by their place in the plan. A unit is always drawn whole, whoever draws it and however many of
its pictures are there already, so no picture depends on who drew what. Each carries a mark of the item it was drawn
for: a damaged picture, or one that belongs to another run, is found and never scored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from filelock import FileLock
from PIL import Image, PngImagePlugin

from kgcli.errors import MissingError
from kgcli.evaluation.baselines.base import Method
from kgcli.evaluation.plan import MANIFEST, Item
from kgcli.evaluation.run.folder import RunFolder
from kgcli.files import sha256
from kgcli.reading import parse_json, read_text

MARK = "kgcli-item"  # PNG text chunk
SUBJECTS = "subjects"  # folder of what methods have learnt
FOREIGN = "pictures_sha256"  # of a method that is no more than its pictures (`foreign`): they bear no marks
LOCKS = ".locks"
MAX_MANIFEST = 512 * 2**20  # bytes; each of its lines repeats the protocol
NUM_LOCKS = 64  # COCO has as many subjects as captions
REPORT_SECONDS = 10.0
POLL_SECONDS = 1.0
_SHOWN = 5
_log = logging.getLogger(__name__)


def environment_shard() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun, accelerate launch and MPI say it."""
    for rank, world in (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")):
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1


def draw_run(run: RunFolder, method: Method, shard: tuple[int, int] = (0, 1)) -> None:
    """Draw what is missing of a shard (number, count); the others are drawn by others.

    Raises: MissingError where a picture that is there is damaged or not of this run.
    """
    units = share_of(run.plan.units(), shard)
    check_pictures(run, [item for unit in units for item in unit])
    data = Path(run.plan.data)
    by_subject: dict[str, list[Item]] = {}
    for item in run.plan.items:
        by_subject.setdefault(item.subject, []).append(item)
    progress = Progress("pictures drawn", sum(len(unit) for unit in units))
    prepared: set[str] = set()
    for unit in units:
        missing = [item for item in unit if not (run.path / item.path).is_file()]
        if missing:
            for subject in dict.fromkeys(item.subject for item in unit if item.subject not in prepared):
                _prepare(run, method, subject, by_subject[subject], data)
                prepared.add(subject)
            pictures = method.draw(unit, data, run.path / SUBJECTS / unit[0].subject)
            assert len(pictures) == len(unit), (method.name, len(pictures), len(unit))
            for item, picture in zip(unit, pictures, strict=True):
                if item in missing:
                    run.write_picture(item, encode_picture(picture, mark_of(run, item)))
        progress.add(len(unit))


def share_of(units: Sequence[list[Item]], shard: tuple[int, int]) -> list[list[Item]]:
    """The units of one shard: neighbours, so that few subjects are learnt by more than one process."""
    number, count = shard
    assert 0 <= number < count, shard
    return list(units[number * len(units) // count : (number + 1) * len(units) // count])


def finish(run: RunFolder) -> None:
    """See that all pictures are there and those of this run, and write the manifest.

    Raises: MissingError.
    """
    if not run.missing() and (run.path / MANIFEST).is_file():
        _check_manifest(run)
        return
    check_pictures(run, run.plan.items)
    if FOREIGN in run.plan.method and not run.missing():
        check_foreign(run)
    run.write_manifest()


def check_foreign(run: RunFolder) -> None:
    """See that pictures which were taken from elsewhere are still those. Raises: MissingError."""
    if digest_of(run.path / item.path for item in run.plan.items) != run.plan.method[FOREIGN]:
        raise MissingError(f"the pictures in {run.path} are no longer those that were taken; use another folder")


def digest_of(files: Iterable[Path]) -> str:
    """One hash of files, in order."""
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()


def wait_for_pictures(run: RunFolder) -> None:
    """Wait until other processes have drawn their shares; should one of them fail, the launcher ends this one too."""
    while run.missing():
        time.sleep(POLL_SECONDS)


def check_pictures(run: RunFolder, items: Sequence[Item]) -> None:
    """See that the pictures which are there are whole and were drawn for their items.

    Raises: MissingError that names some of those which are not.
    """
    bad = [item.path for item in items if (run.path / item.path).is_file() and not _is_of(run, item)]
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise MissingError(
            f"{run.path}: {len(bad)} pictures are damaged or not of this run: {', '.join(bad[:_SHOWN])}{more}; move "
            "them away and start again, they will be drawn anew"
        )


def mark_of(run: RunFolder, item: Item) -> str:
    """What tells the picture of this item in this run from all others."""
    facts = [run.plan.suite, run.plan.method, dataclasses.asdict(item)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def encode_picture(picture: Image.Image, mark: str) -> bytes:
    """A PNG: the same bytes for the same pixels and mark."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(MARK, mark)
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def _is_of(run: RunFolder, item: Item) -> bool:
    try:
        with Image.open(run.path / item.path, formats=("PNG", "JPEG", "WEBP")) as picture:
            mark = picture.info.get(MARK)
            picture.verify()  # checksums of all chunks
        return mark == mark_of(run, item) or FOREIGN in run.plan.method
    except (OSError, SyntaxError, ValueError):  # Pillow's words for damaged files
        return False


def _check_manifest(run: RunFolder) -> None:
    """See that the pictures are still those that the manifest lists. Raises: MissingError."""
    try:
        text = read_text(run.path / MANIFEST, max_bytes=MAX_MANIFEST)
        lines = [parse_json(line, name="a line of it") for line in text.split("\n") if line]
        listed = {line["path"]: line["sha256"] for line in lines}
    except (MissingError, KeyError, TypeError) as error:
        raise MissingError(f"{run.path / MANIFEST} is damaged ({error}); move it away and start again") from None
    changed = [item.path for item in run.plan.items if listed.get(item.path) != sha256(run.path / item.path)]
    if changed:
        raise MissingError(
            f"{run.path}: {len(changed)} pictures are not those that {MANIFEST} lists, such as {changed[0]}; put them "
            f"back, or move them and {MANIFEST} away and draw them anew"
        )


def _prepare(run: RunFolder, method: Method, subject: str, items: Sequence[Item], data: Path) -> None:
    """Let the method learn a subject, one process at a time."""
    (run.path / LOCKS).mkdir(exist_ok=True)
    number = int(hashlib.sha256(subject.encode()).hexdigest(), 16) % NUM_LOCKS
    with FileLock(run.path / LOCKS / f"{number:02d}"):  # a killed process lets go of it
        method.prepare(subject, items, data, run.path / SUBJECTS / subject)


class Progress:
    """How far a process has come, on stderr, now and then and at the end."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self.what, self.total = what, total
        self.done, self.said = 0, time.monotonic()

    def add(self, num: int) -> None:
        """So many more."""
        self.done += num
        now = time.monotonic()
        if now - self.said >= REPORT_SECONDS or self.done == self.total:
            self.said = now
            of = "" if self.total is None else f" of {self.total}"
            if _log.isEnabledFor(logging.WARNING):  # not with --quiet
                print(f"{self.done}{of} {self.what}", file=sys.stderr, flush=True)
