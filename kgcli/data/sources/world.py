"""Samples of the nano world by kind: one deterministic sample per (seed, index).

A sample has two random streams. The image (`spec`) depends on `index % pool`, so that a stage may work on a finite
pool of images whose VAE moments are cached; the prompt (words, reference images) depends on `index`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from kgcli.data.sample import Sample
from kgcli.data.sources.world_recognition import contrast, described, judged, rescened
from kgcli.data.sources.world_sample import BASE_NOUNS, Randomness, reference, with_target
from kgcli.world import text
from kgcli.world.rendering import crop, render, stands_out
from kgcli.world.spec import Spec, Subject, draw_spec, draw_subject, is_held_out, place
from kgcli.world.tables import SEEN_NOUNS

STAGE_NOUNS = list(SEEN_NOUNS)
NOTHING_SAID = 0.04  # fraction of empty captions in text-only data


def draw(
    kinds: dict[str, float],
    seed: int,
    index: int,
    size: int,
    pool: int | None = None,
    *,
    drop_entity_text: float = 0.5,
    keep_background: float = 0.5,
) -> Sample:
    """Return the sample at `index` of the mixture `kinds` (kind -> weight). Same arguments, same sample.

    The two fractions are of compositional samples: captions without the nouns of their entities, and reference images
    that keep their background.
    """
    row = index % pool if pool else index
    shown = np.random.default_rng([1, seed, row])
    told = np.random.default_rng([2, seed, index])
    weights = np.array(list(kinds.values()), float)
    kind = str(shown.choice(list(kinds), p=weights / weights.sum()))
    return SAMPLERS[kind](Randomness(seed, shown, told, row, size, drop_entity_text, keep_background))


def _captioned(random: Randomness, styled: float = 0.3) -> Sample:
    """Return a captioned image for the text-to-image base."""
    two = random.shown.random() < 0.3
    spec = _draw_legible(random, BASE_NOUNS, num_subjects=1 + two, accessory=0.15, styled=styled)
    return with_target(spec, Sample(caption=text.short_caption(spec, random.told, shades=text.SHADED)))


def _numbered(num: int, random: Randomness) -> Sample:
    """Return a captioned image of `num` subjects that stand out from their scene; the caption fits CLIP."""
    spec = _draw_legible(random, BASE_NOUNS, num_subjects=num)
    return with_target(spec, Sample(caption=text.short_caption(spec, random.told, shades=text.SHADED)))


def _draw_legible(random: Randomness, nouns: list[str], **fractions: Any) -> Spec:
    """Return a random spec of `nouns` whose subjects stand out from its scene; `fractions` as of `draw_spec`."""
    while True:
        spec = draw_spec(random.shown, nouns, **fractions)
        if stands_out(spec):
            return spec


def _comic(random: Randomness) -> Sample:
    """Return a captioned image in a style that the caption does not name, for training a LoRA."""
    sample = _captioned(random, styled=0.0)
    return with_target(replace(sample.truth.spec, style="comic"), sample)


def _text(random: Randomness) -> Sample:
    """Return a caption alone, for language modelling and for stage 2."""
    spec = draw_spec(random.shown, STAGE_NOUNS, num_subjects=1 + (random.shown.random() < 0.3))
    # A few empty captions: stage 2 has to learn the null condition.
    words = "" if random.told.random() < NOTHING_SAID else text.short_caption(spec, random.told, shades=text.SHADED)
    return Sample(fragments=text.as_typed((words,) if words else (), random.told), caption=words)


def _pair(random: Randomness) -> Sample:
    """Return an image followed by its caption: colours and patterns have to be read off the image."""
    spec = draw_spec(random.shown, STAGE_NOUNS, num_subjects=1 + (random.shown.random() < 0.15))
    rendered = render(spec, random.size)
    if len(spec.subjects) == 1 and random.told.random() < 0.6:
        words = text.describe(spec.subjects[0].subject, colours=True)
        keep = bool(random.told.random() < 0.5)
        return Sample(fragments=(None, " " + words), images=(crop(rendered, 0, random.size, keep_background=keep),))
    words = text.caption(spec, random.told, colours=1.0)
    return Sample(fragments=(None, " " + words), images=(rendered.image,))


def _interleaved(random: Randomness) -> Sample:
    """Return a story with two or three images of one instance."""
    subject = draw_subject(random.shown, STAGE_NOUNS, accessory=0.0)
    specs = []
    for _ in range(int(random.shown.integers(2, 4))):
        spec = draw_spec(random.shown, [subject.noun], accessory=0.2)
        moment = Subject(subject.noun, subject.identity, spec.subjects[0].subject.accessory)
        specs.append(Spec(place([moment], random.shown), spec.scene, spec.style, spec.variant))
    images = tuple(render(spec, random.size).image for spec in specs)
    return Sample(fragments=text.story(specs, random.told), images=images)


def _compositional(random: Randomness) -> Sample:
    """Return a caption with an image of each entity after its noun, and the target image."""
    two = random.shown.random() < 0.45
    spec = _draw_legible(random, STAGE_NOUNS, num_subjects=1 + two, accessory=0.15)
    drop = bool(random.told.random() < random.drop_entity_text)  # once per caption, for all its entities
    images = tuple(
        reference(
            placed.subject,
            random.told,
            random.size,
            keep_background=bool(random.told.random() < random.keep_background),
        )
        for placed in spec.subjects
    )
    fragments = text.as_typed(text.compositional(spec, random.told, drop=drop), random.told)
    return with_target(spec, Sample(fragments=fragments, images=images, caption=text.in_words(fragments, spec)))


def _edit(random: Randomness) -> Sample:
    """Return an image, an edit instruction, and the image after the edit."""
    before = _draw_legible(random, STAGE_NOUNS, accessory=0.1, styled=0.1)
    after, instruction = text.edit(before, random.shown)
    while is_held_out(after) or not stands_out(after):
        after, instruction = text.edit(before, random.shown)
    fragments: text.Fragments = (None, " " + instruction)
    if random.told.random() < 0.25:  # the input caption, when kept
        fragments = (text.caption(before, random.told, colours=0.0) + " ", *fragments)
    fragments = text.as_typed(fragments, random.told)
    sample = Sample(fragments=fragments, images=(render(before, random.size).image,), caption=text.tell(after))
    return with_target(after, sample, before=before)


def _caption(random: Randomness) -> Sample:
    """Return a caption and the image it describes: keeps text following alive in stage 3."""
    spec = _draw_legible(random, STAGE_NOUNS, num_subjects=1 + (random.shown.random() < 0.3))
    words = text.short_caption(spec, random.told, shades=text.SHADED)
    return with_target(spec, Sample(fragments=text.as_typed((words,), random.told), caption=words))


SAMPLERS: dict[str, Callable[[Randomness], Sample]] = {
    "captioned": _captioned,
    "contrast": contrast,
    "text": _text,
    "pair": _pair,
    "interleaved": _interleaved,
    "compositional": _compositional,
    "edit": _edit,
    "caption": _caption,
    "judged": judged,
    "described": described,
    "rescened": rescened,
    "comic": _comic,
    "one": partial(_numbered, 1),
    "two": partial(_numbered, 2),
    "three": partial(_numbered, 3),
}
# Fields that all samples of a kind have; a prompt with images has no caption that a CLIP text encoder could read.
GIVES: dict[str, frozenset[str]] = {
    "captioned": frozenset({"caption", "target", "truth"}),
    "contrast": frozenset({"caption", "images"}),
    "text": frozenset({"caption", "fragments"}),
    "pair": frozenset({"fragments", "images"}),
    "interleaved": frozenset({"fragments", "images"}),
    "compositional": frozenset({"caption", "fragments", "images", "target", "truth"}),
    "edit": frozenset({"caption", "fragments", "images", "target", "truth"}),
    "caption": frozenset({"caption", "fragments", "target", "truth"}),
    "judged": frozenset({"images", "target", "truth"}),
    "described": frozenset({"caption", "images"}),
    "rescened": frozenset({"images", "target", "truth"}),
    "comic": frozenset({"caption", "target", "truth"}),
    "one": frozenset({"caption", "target", "truth"}),
    "two": frozenset({"caption", "target", "truth"}),
    "three": frozenset({"caption", "target", "truth"}),
}
