"""Generation of a run's images, unit by unit, in one process or many, resumable.

Units are sharded by their position in the plan. A unit is always generated as a whole, in any process and however many
of its images exist, so no image depends on the sharding. Each image carries a mark of its item: a damaged image, or
one of another run, is detected and never scored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
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
SUBJECTS = "subjects"  # folder of per-subject weights
FOREIGN = "pictures_sha256"  # of imported images (`foreign`), which have no marks
LOCKS = ".locks"
MAX_MANIFEST = 512 * 2**20  # bytes; each of its lines repeats the protocol
NUM_LOCKS = 64  # COCO has as many subjects as captions
REPORT_SECONDS = 10.0
POLL_SECONDS = 1.0
_SHOWN = 5
_log = logging.getLogger(__name__)


def generate_run(run: RunFolder, method: Method, shard: tuple[int, int] = (0, 1)) -> None:
    """Generate the missing images of a shard (number, count).

    Raises: MissingError if an existing image is damaged or of another run.
    """
    units = shard_units(run.plan.units(), shard)
    check_images(run, [item for unit in units for item in unit])
    data = Path(run.plan.data)
    by_subject: dict[str, list[Item]] = {}
    for item in run.plan.items:
        by_subject.setdefault(item.subject, []).append(item)
    progress = Progress("images generated", sum(len(unit) for unit in units))
    prepared: set[str] = set()
    for unit in units:
        missing = [item for item in unit if not (run.path / item.path).is_file()]
        if missing:
            for subject in dict.fromkeys(item.subject for item in unit if item.subject not in prepared):
                _prepare(run, method, subject, by_subject[subject], data)
                prepared.add(subject)
            images = method.draw(unit, data, run.path / SUBJECTS / unit[0].subject)
            assert len(images) == len(unit), (method.name, len(images), len(unit))
            for item, image in zip(unit, images, strict=True):
                if item in missing:
                    run.write_image(item, encode_image(image, mark_of(run, item)))
        progress.add(len(unit))


def shard_units(units: Sequence[list[Item]], shard: tuple[int, int]) -> list[list[Item]]:
    """Return the units of one shard: contiguous, so that few subjects are fine-tuned by more than one process."""
    number, count = shard
    assert 0 <= number < count, shard
    return list(units[number * len(units) // count : (number + 1) * len(units) // count])


def finish(run: RunFolder) -> None:
    """Check that the run is complete and its images are its own, and write the manifest.

    Raises: MissingError.
    """
    if not run.missing() and (run.path / MANIFEST).is_file():
        _check_manifest(run)
        return
    check_images(run, run.plan.items)
    if FOREIGN in run.plan.method and not run.missing():
        check_foreign(run)
    run.write_manifest()


def check_foreign(run: RunFolder) -> None:
    """Check that imported images have not changed. Raises: MissingError."""
    if digest_of(run.path / item.path for item in run.plan.items) != run.plan.method[FOREIGN]:
        raise MissingError(f"the images in {run.path} differ from those that were imported; use another folder")


def digest_of(files: Iterable[Path]) -> str:
    """Return one hash of the files, in order."""
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()


def wait_for_images(run: RunFolder) -> None:
    """Wait until other processes have generated their shards; if one fails, the launcher ends this one too."""
    while run.missing():
        time.sleep(POLL_SECONDS)


def check_images(run: RunFolder, items: Sequence[Item]) -> None:
    """Check that existing images are intact and belong to their items.

    Raises: MissingError with the first bad paths.
    """
    bad = [item.path for item in items if (run.path / item.path).is_file() and not _is_of(run, item)]
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise MissingError(
            f"{run.path}: {len(bad)} images are damaged or of another run: {', '.join(bad[:_SHOWN])}{more}; move "
            "them away and run again to regenerate them"
        )


def mark_of(run: RunFolder, item: Item) -> str:
    """Return a hash that identifies the image of this item in this run."""
    identity = [run.plan.suite, run.plan.method, dataclasses.asdict(item)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def encode_image(image: Image.Image, mark: str) -> bytes:
    """Encode a PNG: equal pixels and marks give equal bytes."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(MARK, mark)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def _is_of(run: RunFolder, item: Item) -> bool:
    try:
        with Image.open(run.path / item.path, formats=("PNG", "JPEG", "WEBP")) as image:
            mark = image.info.get(MARK)
            image.verify()  # checksums of all chunks
        return mark == mark_of(run, item) or FOREIGN in run.plan.method
    except (OSError, SyntaxError, ValueError):  # raised by Pillow for damaged files
        return False


def _check_manifest(run: RunFolder) -> None:
    """Check that the images match the manifest. Raises: MissingError."""
    try:
        text = read_text(run.path / MANIFEST, max_bytes=MAX_MANIFEST)
        lines = [parse_json(line, name="a line") for line in text.split("\n") if line]
        listed = {line["path"]: line["sha256"] for line in lines}
    except (MissingError, KeyError, TypeError) as error:
        raise MissingError(f"{run.path / MANIFEST} is damaged ({error}); move it away and run again") from None
    changed = [item.path for item in run.plan.items if listed.get(item.path) != sha256(run.path / item.path)]
    if changed:
        raise MissingError(
            f"{run.path}: {len(changed)} images differ from {MANIFEST}, such as {changed[0]}; restore them, "
            f"or move them and {MANIFEST} away and run again to regenerate them"
        )


def _prepare(run: RunFolder, method: Method, subject: str, items: Sequence[Item], data: Path) -> None:
    """Run the method's per-subject preparation, one process at a time."""
    (run.path / LOCKS).mkdir(exist_ok=True)
    number = int(hashlib.sha256(subject.encode()).hexdigest(), 16) % NUM_LOCKS
    with FileLock(run.path / LOCKS / f"{number:02d}"):  # released when a process dies
        method.prepare(subject, items, data, run.path / SUBJECTS / subject)


class Progress:
    """Progress of a process, printed on stderr at intervals and at the end."""

    def __init__(self, label: str, total: int | None = None) -> None:
        self.label, self.total = label, total
        self.done, self.reported = 0, time.monotonic()

    def add(self, num: int) -> None:
        """Advance by `num`."""
        self.done += num
        now = time.monotonic()
        if now - self.reported >= REPORT_SECONDS or self.done == self.total:
            self.reported = now
            of = "" if self.total is None else f" of {self.total}"
            if _log.isEnabledFor(logging.WARNING):  # not with --quiet
                print(f"{self.done}{of} {self.label}", file=sys.stderr, flush=True)
