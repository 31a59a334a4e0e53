"""The plan of a run: the images to generate with their seeds, and the names of a run's files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kgcli.errors import MissingError, UsageError
from kgcli.reading import PathBelow, parse_record

T = TypeVar("T")

PLAN, MANIFEST, SCORES = "plan.json", "manifest.jsonl", "scores.json"
NUM_IMAGES = 4  # for each prompt of DreamBench
NOISES = ("independent", "official")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image to generate.

    Items of one `unit` form one batch for every method: other batch compositions may differ in the last bits.
    `inputs` name images below the data folder, in the order of the `<image>` marks of `input_text`.
    """

    path: PathBelow  # of the image, below the run folder
    unit: str
    subject: PathBelow  # the cluster of the intervals
    prompt: int
    image: int
    input_text: str  # prompt of the method, "<image>" in place of each image
    scored_text: str  # text for CLIP-T and other text scores
    inputs: tuple[PathBelow, ...]
    seed: int
    class_noun: str = ""
    category: str = ""  # of the subject: object, live
    kind: str = ""  # of the prompt: context, accessory, attribute


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The items of a run and its settings. Runs with equal `protocol` are comparable."""

    suite: str  # dreambench, coco; nano-dreambench, nano-coco, nano-skills
    protocol: dict[str, Any]
    method: dict[str, Any]  # name, settings, weights' hashes
    items: tuple[Item, ...]
    data: str = ""  # folder of the inputs in this process; not stored in the file

    def to_json(self) -> str:
        """Return the text of plan.json."""
        fields = dataclasses.asdict(self)
        del fields["data"]
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str = PLAN) -> Plan:
        """Parse plan.json; the caller sets `data`. Raises: MissingError."""
        return dataclasses.replace(parse_record(text, cls, name=name), data="")

    def protocol_value(self, name: str, kind: type[T]) -> T:
        """Return one value of the protocol. Raises: MissingError if it is absent or of another type."""
        value = self.protocol.get(name)
        if not isinstance(value, kind):
            raise MissingError(f"the {PLAN} of this run is damaged: protocol.{name} is {value!r}")
        return value

    def units(self) -> list[list[Item]]:
        """Return the items grouped into generation batches, in order."""
        batches: dict[str, list[Item]] = {}
        for item in self.items:
            batches.setdefault(item.unit, []).append(item)
        return list(batches.values())

    def difference(self, other: Plan) -> str:
        """Describe the first difference between two plans."""
        for part in ("suite", "protocol", "method"):
            a, b = getattr(self, part), getattr(other, part)
            if a == b:
                continue
            if isinstance(a, str):
                return f"{part} {a}, not {b}"
            names: Sequence[str] = sorted(name for name in {*a, *b} if a.get(name) != b.get(name))
            return ", ".join(f"{name} {a.get(name)}, not {b.get(name)}" for name in names[:3])
        return "other items"


@dataclass(frozen=True, kw_only=True)
class DreamBenchOptions:
    """Options of a suite of subjects; they belong to the protocol or to the method."""

    seed: int = 0
    noise: str = "independent"
    class_noun: bool = False
    num_images: int = NUM_IMAGES
    subjects: tuple[str, ...] = ()  # () is all

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise UsageError(f"--noise is {self.noise}; it must be {' or '.join(NOISES)}")
        if self.num_images < 1:
            raise UsageError(f"--num-images is {self.num_images}; it must be at least 1")

    def named(self, known: Collection[str]) -> str | list[str]:
        """Return the subjects as stored in a protocol: "all" or sorted names."""
        return "all" if set(self.subjects) in (set(), set(known)) else sorted(set(self.subjects))

    def check_subjects(self, known: Collection[str]) -> None:
        """Check that the suite has every requested subject. Raises: UsageError."""
        unknown = [name for name in self.subjects if name not in known]
        if unknown:
            raise UsageError(f"--subjects: unknown subject {unknown[0]}; the subjects are {', '.join(known)}")


def derive_seed(*parts: object) -> int:
    """Return a seed that depends only on the given parts."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits


def fingerprint(value: object) -> str:
    """Return the sha256 of a JSON value: of the prompts of a protocol, or of a list of hashes."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def requested_prompts(items: Iterable[Item]) -> list[list[Any]]:
    """Return the prompts of a protocol of subjects, once each."""
    return [[item.subject, item.prompt, item.scored_text, item.inputs] for item in items if item.image == 0]
