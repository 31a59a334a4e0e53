"""The folder of a run: plan, generated images and manifest.

    RUN/plan.json        protocol, method and items in order; never changed
    RUN/images/...png    one per item, written atomically
    RUN/manifest.jsonl   written when all images are present: one line per item, with the sha256 of its image
    RUN/scores.json      the scores (`scores`)

These files are functions of the plan, without times or machine names. A run that was interrupted and resumed, or
sharded over processes, writes the same bytes as any other.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.plan import MANIFEST, PLAN, SCORES, Item, Plan
from kgcli.files import check_inside, sha256, write_whole
from kgcli.reading import MAX_JSON_BYTES, read_text


class RunFolder:
    """A folder with a plan."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan

    @classmethod
    def start(cls, path: Path, plan: Plan) -> RunFolder:
        """Create the folder of a plan, or reopen an interrupted run. Its inputs may have moved.

        Raises: UsageError if the folder holds another plan or other files, or cannot be created.
        """
        cls.check_start(path, plan)
        text = plan.to_json()
        plan = _read_back(plan)
        if (path / PLAN).is_file():
            return cls(path, plan)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the folder {path} cannot be created: {error.strerror}; choose another") from None
        write_whole(path / PLAN, text.encode())
        return cls(path, plan)

    @classmethod
    def check_start(cls, path: Path, plan: Plan) -> None:
        """Check that the folder of a plan can be created or holds that plan; nothing is written.

        Raises: UsageError.
        """
        plan = _read_back(plan)
        if (path / PLAN).is_file():
            held = cls.open(path)
            if dataclasses.replace(held.plan, data=plan.data) != plan:
                raise UsageError(f"{path} holds another run ({held.plan.difference(plan)}); choose another folder")
        # A process killed at the start leaves a partial plan.
        elif path.exists() and (
            not path.is_dir() or any(not one.name.startswith(f".{PLAN}.") for one in path.iterdir())
        ):
            raise UsageError(f"{path} exists and holds no run; choose another folder")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of a run. Raises: MissingError."""
        if not (path / PLAN).is_file():
            raise MissingError(f"{path} holds no run: it has no {PLAN}")
        plan = Plan.from_json(read_text(path / PLAN, max_bytes=MAX_JSON_BYTES), str(path / PLAN))
        check_inside(path, (item.path for item in plan.items))
        return cls(path, plan)

    @property
    def is_scored(self) -> bool:
        """True if the folder holds scores."""
        return (self.path / SCORES).is_file()

    def missing(self) -> list[Item]:
        """Return the items without an image, in order."""
        return [item for item in self.plan.items if not (self.path / item.path).is_file()]

    def write_image(self, item: Item, content: bytes) -> None:
        """Write one image atomically."""
        target = self.path / item.path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, content)

    def write_manifest(self) -> None:
        """Write the manifest of a complete run. Raises: MissingError with the number of missing images."""
        missing = self.missing()
        if missing:
            raise MissingError(f"{self.path}: {len(missing)} of {len(self.plan.items)} images are missing")
        shared = {"method": self.plan.method, "protocol": self.plan.protocol}
        lines = [
            json.dumps({**dataclasses.asdict(item), "sha256": sha256(self.path / item.path), **shared})
            for item in self.plan.items
        ]
        write_whole(self.path / MANIFEST, ("\n".join(lines) + "\n").encode())


def _read_back(plan: Plan) -> Plan:
    """Return a plan as when read from its file: lists for tuples."""
    return dataclasses.replace(Plan.from_json(plan.to_json()), data=plan.data)
