"""From the numbers of pictures to figures of all of them and of groups. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kgcli.evaluation.metrics.clusters import cluster_mean, subject_means
from kgcli.evaluation.scores import ALL, Figure, PictureScore


def figures_of(
    pictures: Sequence[PictureScore], measures: Sequence[str], row: str = "method", *, by_subject: bool = True
) -> tuple[Figure, ...]:
    """The mean of each measure, over images, then prompts, then subjects: for all, and by category, kind, subject.

    Captions have a subject each, thousands of them, that nobody asks for: there, leave `by_subject` out.
    """
    groups = dict(_groups(pictures, ("category", "kind", "subject") if by_subject else ("category", "kind")))
    figures = (_figure(name, row, group, members) for name in measures for group, members in groups.items())
    return tuple(figure for figure in figures if figure is not None)


def means_by_subject(pictures: Sequence[PictureScore], measure: str) -> dict[str, float]:
    """The mean of each subject that has the measure, over images, then prompts."""
    return subject_means((one.subject, one.prompt, one.values[measure]) for one in pictures if measure in one.values)


def _groups(pictures: Sequence[PictureScore], names: Sequence[str]) -> Iterator[tuple[str, list[PictureScore]]]:
    yield ALL, list(pictures)
    for name in names:
        members: dict[str, list[PictureScore]] = {}
        for picture in pictures:
            if value := getattr(picture, name):
                members.setdefault(value, []).append(picture)
        for value in sorted(members):
            yield f"{name}:{value}", members[value]


def _figure(measure: str, row: str, group: str, members: Sequence[PictureScore]) -> Figure | None:
    means = means_by_subject(members, measure)
    if not means:
        return None
    mean = cluster_mean([means[subject] for subject in sorted(means)])
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
