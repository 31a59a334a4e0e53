"""Two scored runs side by side: differences over the same subjects, with intervals. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kgcli.errors import UsageError
from kgcli.evaluation.clusters import Paired, paired
from kgcli.evaluation.figures import means_by_subject
from kgcli.evaluation.scores import Measure, Scores


@dataclass(frozen=True)
class Compared:
    """One measure of two runs."""

    measure: Measure
    a: float
    b: float
    paired: Paired | None  # of a - b over subjects; None for a measure of the whole set, as FID


def compare(a: Scores, b: Scores) -> tuple[Compared, ...]:
    """Every measure both runs have. Raises: UsageError where suite, protocol or subjects differ."""
    if a.suite != b.suite:
        raise UsageError(f"the runs are of {a.suite} and {b.suite}; only runs of one suite can be compared")
    differing = sorted(_differences(a.protocol, b.protocol))
    if differing:
        raise UsageError(f"the runs have other protocols ({', '.join(differing[:4])}); their numbers do not compare")
    return tuple(_compared(one, a, b) for one in a.measures if _has(one, a) and _has(one, b))


def _compared(measure: Measure, a: Scores, b: Scores) -> Compared:
    of_a, of_b = means_by_subject(a.pictures, measure.name), means_by_subject(b.pictures, measure.name)
    both = paired(of_a, of_b) if of_a or of_b else None
    return Compared(measure, a.find(measure.name).value, b.find(measure.name).value, both)


def _has(measure: Measure, scores: Scores) -> bool:
    return any((one.measure, one.row, one.group) == (measure.name, "method", "all") for one in scores.figures)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The dotted names of values that differ."""
    found: set[str] = set()
    for name in a.keys() | b.keys():
        one, other = a.get(name), b.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found |= _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            found.add(f"{prefix}{name}")
    return found
