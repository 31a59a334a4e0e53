"""Scores of subjects: identity against three sets of reference photos, and agreement with the text.

Published tables mix three references: `input` is the method's input photo (as KOSMOS-G), `all` is every photo of the
subject (as DreamBooth), `others` all but the input. A copy of the input scores 1 only on the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kgcli.errors import UsageError
from kgcli.evaluation.extractors.base import Extractors, ImageExtractor
from kgcli.evaluation.extractors.cache import Alteration, FeatureCache
from kgcli.evaluation.plan import Item
from kgcli.evaluation.scores import ImageScore, Measure, image_score

COPIED = 0.95  # DINO similarity to the input above which an image counts as a copy
COPY_INPUT, ORACLE = "copy-input", "oracle"
REFERENCES = {"input": "the input", "all": "all photos", "others": "the other photos"}
SUBJECT_MEASURES = (
    *(
        Measure(name=f"dino_{key}", title=f"DINO to {words}", primary=key == "input")
        for key, words in REFERENCES.items()
    ),
    *(
        Measure(name=f"clip_i_{key}", title=f"CLIP-I to {words}", primary=key == "input")
        for key, words in REFERENCES.items()
    ),
    Measure(name="clip_t", title="CLIP-T", primary=True),
    Measure(name="copied", title=f"copies (DINO to the input above {COPIED})", higher_is_better=False),
)
MASKED = tuple(
    Measure(name=f"dino_masked_{key}", title=f"DINO to {words}, backgrounds white") for key, words in REFERENCES.items()
)
DINOV2 = tuple(Measure(name=f"dinov2_{key}", title=f"DINOv2 to {words}") for key, words in REFERENCES.items())

Vectors = Mapping[str, NDArray[np.float64]]  # photo -> (D,)
Masks = Mapping[str, Alteration]  # subject -> its background removal


@dataclass(frozen=True)
class SubjectPhotos:
    """The real photos of one subject, relative to the data folder, and the input among them."""

    photos: tuple[str, ...]
    input: str


@dataclass(frozen=True)
class SubjectScores:
    """Scores of the method's images, of the input as a baseline, and of real photos against each other."""

    method: tuple[ImageScore, ...]
    copy_input: tuple[ImageScore, ...]
    oracle: tuple[ImageScore, ...]


def check_references(items: Sequence[Item], references: Mapping[str, SubjectPhotos]) -> None:
    """Check that every subject has photos, including its input. Raises: UsageError."""
    for subject in dict.fromkeys(item.subject for item in items):
        if subject not in references:
            raise UsageError(f"the subject {subject} has no real photos; give references for every subject")
        if references[subject].input not in references[subject].photos:
            raise UsageError(f"{subject}: the input {references[subject].input} is not one of the subject's photos")


class SubjectScorer:
    """Scorer of images of one list of items; each extractor encodes every image and photo once."""

    def __init__(
        self, items: Sequence[Item], data: Path, references: Mapping[str, SubjectPhotos], cache: FeatureCache
    ) -> None:
        check_references(items, references)
        self.items = items
        self.data = data
        self.references = {subject: references[subject] for subject in dict.fromkeys(one.subject for one in items)}
        self.cache = cache
        self.photos = [(subject, one) for subject, of in self.references.items() for one in dict.fromkeys(of.photos)]

    def files(self, folder: Path) -> list[tuple[str, Path]]:
        """Return subject and file of the items' images in a folder."""
        return [(item.subject, folder / item.path) for item in self.items]

    def photo_files(self) -> list[tuple[str, Path]]:
        """Return subject and file of the photos."""
        return [(subject, self.data / photo) for subject, photo in self.photos]

    def __call__(self, folder: Path, extractors: Extractors, masks: Masks | None = None) -> SubjectScores:
        """Score the items' images in a folder; `masks` adds DINO scores without backgrounds."""
        texts = self._texts(extractors)
        passes: list[tuple[str, ImageExtractor, Masks | None]] = [
            ("dino", extractors.dino, None),
            ("clip_i", extractors.clip, None),
        ]
        if masks is not None:
            passes.append(("dino_masked", extractors.dino, masks))
        if extractors.dinov2 is not None:
            passes.append(("dinov2", extractors.dinov2, None))
        method = tuple(image_score(item) for item in self.items)
        copy_input, oracle = method, self._photo_scores()
        for prefix, extractor, altered in passes:
            images = self._vectors(extractor, self.files(folder), altered)
            rows = self._vectors(extractor, self.photo_files(), altered)
            photos = {photo: row for (_, photo), row in zip(self.photos, rows, strict=True)}
            inputs = [photos[self.references[item.subject].input] for item in self.items]
            shown = texts if prefix == "clip_i" else None
            method = self._compare(method, images, photos, prefix, shown)
            copy_input = self._compare(copy_input, inputs, photos, prefix, shown)
            oracle = self._compare_photos(oracle, photos, prefix)
        return SubjectScores(method, copy_input, oracle)

    def _texts(self, extractors: Extractors) -> Vectors:
        texts = list(dict.fromkeys(item.scored_text for item in self.items))
        return dict(zip(texts, _unit(self.cache.texts(extractors.clip, texts)), strict=True))

    def _vectors(
        self, extractor: ImageExtractor, named: Sequence[tuple[str, Path]], masks: Masks | None
    ) -> list[NDArray[np.float64]]:
        """Return a feature vector for each (subject, file)."""
        if masks is None:
            files = list(dict.fromkeys(file for _, file in named))  # an image of several subjects is listed for each
            known = dict(zip(files, _unit(self.cache.images(extractor, files)), strict=True))
            return [known[file] for _, file in named]
        places: dict[str, list[int]] = {}
        for place, (subject, _) in enumerate(named):
            places.setdefault(subject, []).append(place)
        parts = [([named[place][1] for place in own], masks[subject]) for subject, own in places.items()]
        found: dict[int, NDArray[np.float64]] = {}
        for own, rows in zip(places.values(), self.cache.parts(extractor, parts), strict=True):
            found |= dict(zip(own, _unit(rows), strict=True))
        return [found[place] for place in range(len(named))]

    def _compare(
        self,
        scores: tuple[ImageScore, ...],
        vectors: Sequence[NDArray[np.float64]],
        photos: Vectors,
        prefix: str,
        texts: Vectors | None,
    ) -> tuple[ImageScore, ...]:
        rows = []
        for one, vector in zip(scores, vectors, strict=True):
            values = {**one.values, **self._similarities(one.subject, vector, photos, prefix)}
            if texts is not None:
                values["clip_t"] = float(vector @ texts[one.scored_text])
            if prefix == "dino":
                values["copied"] = float(values["dino_input"] > COPIED)
            rows.append(replace(one, values=values))
        return tuple(rows)

    def _photo_scores(self) -> tuple[ImageScore, ...]:
        """Return an empty score for every real photo, each as the image of a prompt of its own."""
        categories = {item.subject: item.category for item in self.items}
        return tuple(
            ImageScore(
                path=photo,
                subject=subject,
                prompt=place,
                image=0,
                scored_text="",
                inputs=(one.input,),
                values={},
                category=categories[subject],
            )
            for subject, one in self.references.items()
            for place, photo in enumerate(dict.fromkeys(one.photos))
        )

    def _compare_photos(self, scores: tuple[ImageScore, ...], photos: Vectors, prefix: str) -> tuple[ImageScore, ...]:
        """Compare each photo with the others as references."""
        return tuple(
            replace(
                one,
                values={**one.values, **self._similarities(one.subject, photos[one.path], photos, prefix, one.path)},
            )
            for one in scores
        )

    def _similarities(
        self, subject: str, vector: NDArray[np.float64], photos: Vectors, prefix: str, itself: str = ""
    ) -> dict[str, float]:
        """Return the mean cosine similarity to each non-empty reference."""
        of = self.references[subject]
        every = tuple(dict.fromkeys(of.photos))
        references = {"input": (of.input,), "all": every, "others": tuple(one for one in every if one != of.input)}
        values = {}
        for key, names in references.items():
            cosines = [float(vector @ photos[name]) for name in names if name != itself]
            if cosines:
                values[f"{prefix}_{key}"] = sum(cosines) / len(cosines)
        return values


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Normalise rows to unit length in float64."""
    exact = np.asarray(rows, np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)
