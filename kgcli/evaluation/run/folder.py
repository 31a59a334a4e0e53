"""A run: the pictures a benchmark asks for, the folder they are made in, and its manifest. No torch.

    RUN/plan.json        what is asked: protocol, method, items in order, where the inputs were; never changed
    RUN/images/...png    one for each item, written whole or not at all
    RUN/manifest.jsonl   written when all pictures are there: one line an item, with the sha256 of its picture
    RUN/scores.json      what scoring found (`scores`)

Everything in these files is a function of the plan: no times, no machine names. A run that was killed and went on, or
was shared out over processes, leaves the same bytes as one that was not.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.plan import MANIFEST, PLAN, Item, Plan
from kgcli.files import check_inside, sha256, write_whole
from kgcli.reading import MAX_JSON_BYTES, read_text


class RunFolder:
    """A folder with a plan in it."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan

    @classmethod
    def start(cls, path: Path, plan: Plan) -> RunFolder:
        """The folder of a plan, new or one that was left off. Inputs may have moved, as long as they are the same.

        Raises: UsageError where the folder holds another plan or other files, or cannot be made.
        """
        text = plan.to_json()
        plan = dataclasses.replace(Plan.from_json(text), data=plan.data)  # as it will be read again: lists for tuples
        if (path / PLAN).is_file():
            held = cls.open(path)
            if dataclasses.replace(held.plan, data=plan.data) != plan:
                raise UsageError(f"{path} holds another run ({held.plan.difference(plan)}); choose another folder")
            return cls(path, plan)
        # A process that was killed in its first moments leaves the beginnings of a plan.
        if path.exists() and (not path.is_dir() or any(not one.name.startswith(f".{PLAN}.") for one in path.iterdir())):
            raise UsageError(f"{path} is there and holds no run; choose another folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the folder {path} cannot be made: {error.strerror}; choose another") from None
        write_whole(path / PLAN, text.encode())
        return cls(path, plan)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A folder that holds a run. Raises: MissingError."""
        if not (path / PLAN).is_file():
            raise MissingError(f"{path} holds no run: there is no {PLAN} in it")
        plan = Plan.from_json(read_text(path / PLAN, max_bytes=MAX_JSON_BYTES), str(path / PLAN))
        check_inside(path, (item.path for item in plan.items))
        return cls(path, plan)

    def missing(self) -> list[Item]:
        """The items without a picture, in order."""
        return [item for item in self.plan.items if not (self.path / item.path).is_file()]

    def write_picture(self, item: Item, content: bytes) -> None:
        """One picture, whole or not at all."""
        target = self.path / item.path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, content)

    def write_manifest(self) -> None:
        """The manifest of a run whose pictures are all there. Raises: MissingError that counts those which are not."""
        missing = self.missing()
        if missing:
            raise MissingError(f"{self.path}: {len(missing)} of {len(self.plan.items)} pictures are not there yet")
        shared = {"method": self.plan.method, "protocol": self.plan.protocol}
        lines = [
            json.dumps({**dataclasses.asdict(item), "sha256": sha256(self.path / item.path), **shared})
            for item in self.plan.items
        ]
        write_whole(self.path / MANIFEST, ("\n".join(lines) + "\n").encode())
