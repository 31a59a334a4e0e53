"""The scores of a run: scores.json, read by the table, the comparison and the page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kgcli.errors import MissingError
from kgcli.evaluation.metrics.intervals import cluster_mean, subject_means
from kgcli.evaluation.plan import SCORES, Item
from kgcli.files import write_whole
from kgcli.reading import PathBelow, read_record

ALL = "all"
RATES = ("copied", "judge_")  # beginnings of the names of measures that are 0 or 1 for an image; others are cosines
MAX_BYTES = 256 * 2**20  # of scores.json; 30,000 images with their numbers take 20 MB


@dataclass(frozen=True, kw_only=True)
class Measure:
    """The name and direction of a score."""

    name: str  # dino_input, clip_i_all, clip_t, fid ...
    title: str  # shown to users
    higher_is_better: bool = True
    primary: bool = False  # shown first


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One score of all images or a group of them, with its 95 % intervals where defined."""

    measure: str
    value: float
    row: str = "method"  # or a baseline: copy-input, oracle, ...
    group: str = ALL  # or "subject:dog", "category:live", "kind:context"
    low: float | None = None  # t interval over subject means
    high: float | None = None
    bootstrap_low: float | None = None  # subjects resampled; images for a score of the whole set
    bootstrap_high: float | None = None
    num_subjects: int = 0
    num_pictures: int = 0

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The t interval, or the bootstrap interval if there are no subjects."""
        for low, high in ((self.low, self.high), (self.bootstrap_low, self.bootstrap_high)):
            if low is not None and high is not None:
                return low, high
        return None


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """The scores of one image."""

    path: PathBelow  # below the run folder, or the folder given by --images
    subject: str
    prompt: int
    image: int
    scored_text: str
    inputs: tuple[PathBelow, ...]  # below the data folder
    values: Mapping[str, float]  # measure -> number
    category: str = ""
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores and settings of one run. Runs with equal `suite` and `protocol` are comparable."""

    suite: str
    protocol: Mapping[str, Any]  # of generation and scoring: counts, settings, extractors with hashes
    method: Mapping[str, Any]  # its fingerprint
    versions: Mapping[str, str]
    measures: tuple[Measure, ...]
    figures: tuple[Figure, ...]
    pictures: tuple[ImageScore, ...]
    notes: tuple[str, ...] = field(default=())
    data: str = ""  # folder of the inputs in this process; not stored in the file

    def to_json(self) -> str:
        """Return the text of scores.json; equal scores give equal bytes."""
        fields = dataclasses.asdict(self)
        del fields["data"]
        return json.dumps(fields, indent=1, ensure_ascii=False, sort_keys=True) + "\n"

    def find(self, measure: str, row: str = "method", group: str = ALL) -> Figure:
        """Return one figure. Raises: KeyError."""
        for figure in self.figures:
            if (figure.measure, figure.row, figure.group) == (measure, row, group):
                return figure
        raise KeyError((measure, row, group))

    def write(self, folder: Path) -> None:
        """Write scores.json into a folder atomically."""
        write_whole(folder / SCORES, self.to_json().encode())

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Read the scores of a run folder or file. Raises: MissingError."""
        file = path / SCORES if path.is_dir() else path
        if not file.is_file():
            raise MissingError(f"{file} does not exist; score the run first")
        return dataclasses.replace(read_record(file, cls, max_bytes=MAX_BYTES), data="")


def figures_of(
    images: Sequence[ImageScore], measures: Sequence[str], row: str = "method", *, by_subject: bool = True
) -> tuple[Figure, ...]:
    """Average each measure over images, then prompts, then subjects: overall and by category, kind and subject.

    Set `by_subject` to False for captions, each of which is a subject of its own.
    """
    groups = dict(_groups(images, ("category", "kind", "subject") if by_subject else ("category", "kind")))
    figures = (_figure(name, row, group, members) for name in measures for group, members in groups.items())
    return tuple(figure for figure in figures if figure is not None)


def means_by_subject(images: Sequence[ImageScore], measure: str) -> dict[str, float]:
    """Return the mean of each subject that has the measure, over images, then prompts."""
    return subject_means((one.subject, one.prompt, one.values[measure]) for one in images if measure in one.values)


def range_of(measure: str) -> tuple[float, float]:
    """Return the lowest and highest value of a per-image measure: of a rate, else of a cosine similarity."""
    return (0.0, 1.0) if measure.startswith(RATES) else (-1.0, 1.0)


def _groups(images: Sequence[ImageScore], names: Sequence[str]) -> Iterator[tuple[str, list[ImageScore]]]:
    yield ALL, list(images)
    for name in names:
        members: dict[str, list[ImageScore]] = {}
        for image in images:
            if value := getattr(image, name):
                members.setdefault(value, []).append(image)
        for value in sorted(members):
            yield f"{name}:{value}", members[value]


def _figure(measure: str, row: str, group: str, members: Sequence[ImageScore]) -> Figure | None:
    means = means_by_subject(members, measure)
    if not means:
        return None
    mean = cluster_mean([means[subject] for subject in sorted(means)], range_of(measure))
    return Figure(
        measure=measure,
        value=mean.value,
        row=row,
        group=group,
        low=mean.low,
        high=mean.high,
        bootstrap_low=mean.bootstrap_low,
        bootstrap_high=mean.bootstrap_high,
        num_subjects=mean.num,
        num_pictures=sum(measure in one.values for one in members),
    )


def image_score(item: Item, values: Mapping[str, float] | None = None) -> ImageScore:
    """Return the score record of an item's image."""
    return ImageScore(
        path=item.path,
        subject=item.subject,
        prompt=item.prompt,
        image=item.image,
        scored_text=item.scored_text,
        inputs=item.inputs,
        values=values or {},
        category=item.category,
        kind=item.kind,
    )
