"""Samples of the nano world by kind: one deterministic sample per (seed, index).

A sample has two random streams. The image (`spec`) depends on `index % pool`, so that a stage may work on a finite
pool of images whose VAE moments are cached; the prompt (words, reference images) depends on `index`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from kgcli.data.sample import Sample, Target
from kgcli.world import text
from kgcli.world.scenes import NUM_VARIANTS
from kgcli.world.spec import (
    Spec,
    Subject,
    crop,
    draw_spec,
    draw_subject,
    is_held_out,
    place,
    render,
    stands_out,
)
from kgcli.world.tables import (
    ACCESSORIES,
    BASE_ONLY_NOUNS,
    FIRST_RECOGNISER_IDENTITY,
    NOUNS,
    SCENES,
    SEEN_NOUNS,
    STYLES,
)

BASE_NOUNS = [*SEEN_NOUNS, *BASE_ONLY_NOUNS]
STAGE_NOUNS = list(SEEN_NOUNS)
NOTHING_SAID = 0.04  # fraction of empty captions in text-only data
GROUP = 8  # neighbours in a batch of the recognisers that differ in one property
CONTRAST_GROUP = 32  # neighbours in a batch of CLIP that differ in one property


@dataclass(frozen=True)
class Truth:
    """Ground truth of a sample: the spec of its image, the spec before an edit, and the index of the subject that a
    reference shows."""

    spec: Spec
    before: Spec | None = None
    subject: int = 0


@dataclass(frozen=True)
class Randomness:
    """The two random streams of one sample, its seed and index, and the size of its images in pixels."""

    seed: int
    shown: np.random.Generator
    told: np.random.Generator
    index: int
    size: int
    drop_entity_text: float  # fractions of compositional samples
    keep_background: float


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
    shown = np.random.default_rng([1, seed, index % pool if pool else index])
    told = np.random.default_rng([2, seed, index])
    weights = np.array(list(kinds.values()), float)
    kind = str(shown.choice(list(kinds), p=weights / weights.sum()))
    return SAMPLERS[kind](Randomness(seed, shown, told, index, size, drop_entity_text, keep_background))


def _of(spec: Spec, sample: Sample, *, before: Spec | None = None, subject: int = 0) -> Sample:
    """Return the sample with `spec` as its target and truth."""
    return replace(sample, target=partial(_render, spec), truth=Truth(spec, before, subject))


def _render(spec: Spec, size: int) -> Target:
    rendered = render(spec, size)
    return Target(rendered.image, rendered.masks)


def reference(subject: Subject, rng: np.random.Generator, size: int, *, keep_background: bool) -> Image.Image:
    """Return a new image of an instance, as a user would give it: another scene and pose, cropped."""
    bare = Subject(subject.noun, subject.identity, None, subject.recoloured)
    spec = draw_spec(rng, [subject.noun], styled=0.0)
    spec = Spec(place([bare], rng), spec.scene, "photo", spec.variant)
    return crop(render(spec, size), 0, size, keep_background=keep_background)


def _captioned(random: Randomness, styled: float = 0.3) -> Sample:
    """Return a captioned image for the text-to-image base."""
    two = random.shown.random() < 0.3
    spec = _draw_legible(random, BASE_NOUNS, num_subjects=1 + two, accessory=0.15, styled=styled)
    return _of(spec, Sample(caption=_caption_of(spec, random)))


def _numbered(num: int, random: Randomness) -> Sample:
    """Return a captioned image of `num` subjects that stand out from their scene; the caption fits CLIP."""
    spec = _draw_legible(random, BASE_NOUNS, num_subjects=num)
    return _of(spec, Sample(caption=text.short_caption(spec, random.told)))


def _draw_legible(random: Randomness, nouns: list[str], **fractions: Any) -> Spec:
    """Return a random spec of `nouns` whose subjects stand out from its scene; `fractions` as of `draw_spec`."""
    while True:
        spec = draw_spec(random.shown, nouns, **fractions)
        if stands_out(spec, random.size):
            return spec


def _caption_of(spec: Spec, random: Randomness) -> str:
    """Return the caption of a spec; at 128 px it fits the CLIP text encoder."""
    return text.prompt_for(spec, random.told, random.size)


def _comic(random: Randomness) -> Sample:
    """Return a captioned image in a style that the caption does not name, for training a LoRA."""
    sample = _captioned(random, styled=0.0)
    return _of(replace(sample.truth.spec, style="comic"), sample)


def _contrast(random: Randomness) -> Sample:
    """Return an image and its caption for CLIP; `CONTRAST_GROUP` neighbours share all but one property.

    Where scene and colour distinguish images, shapes are never learnt: in half of the groups only the noun differs.
    """
    group = np.random.default_rng([3, random.seed, random.index // CONTRAST_GROUP])
    alike = str(group.choice(["all but noun", "scene", "noun", "none"], p=[0.5, 0.15, 0.2, 0.15]))
    shared = draw_spec(group, BASE_NOUNS)
    cropped, whole = group.random() < 0.6, group.random() < 0.7
    if alike == "all but noun":
        noun = str(group.permutation(BASE_NOUNS)[random.index % CONTRAST_GROUP])
        return _only_noun_differs(random, noun, shared, cropped=bool(cropped), keep=not whole)
    rng = random.shown
    nouns = [shared.subjects[0].subject.noun] if alike == "noun" else BASE_NOUNS
    spec = draw_spec(rng, nouns, accessory=0.15, num_subjects=1 + (rng.random() < 0.15), styled=0.2)
    moved = Spec(spec.subjects, shared.scene, shared.style, spec.variant)
    if alike == "scene" and not is_held_out(moved):
        spec = moved
    rendered = render(spec, random.size)
    if len(spec.subjects) == 1 and rng.random() < 0.5:
        keep = bool(rng.random() < 0.3)
        words = text.describe(spec.subjects[0].subject, colours=rng.random() < 0.85)
        return Sample(images=(crop(rendered, 0, random.size, keep_background=keep),), caption=words)
    return Sample(images=(rendered.image,), caption=text.caption(spec, rng, colours=0.85))


def _only_noun_differs(random: Randomness, noun: str, shared: Spec, *, cropped: bool, keep: bool) -> Sample:
    """Return an instance of `noun` in the colour and scene of `shared`, cropped or whole."""
    rng, model = random.shown, shared.subjects[0].subject
    other = draw_subject(rng, [noun], accessory=0.0)
    subject = Subject(noun, other.identity, model.accessory, recoloured=model.look.colour_name)
    spec = Spec(place([subject], rng), shared.scene, shared.style, int(rng.integers(NUM_VARIANTS)))
    held_out = is_held_out(spec)
    if held_out:  # plain crops never are
        spec = Spec(spec.subjects, "studio", "photo", spec.variant)
    rendered = render(spec, random.size)
    if cropped or held_out:
        image = crop(rendered, 0, random.size, keep_background=keep and not held_out)
        return Sample(images=(image,), caption=text.describe(subject, colours=rng.random() < 0.7))
    return Sample(images=(rendered.image,), caption=text.caption(spec, rng, colours=0.7))


def _text(random: Randomness) -> Sample:
    """Return a caption alone, for language modelling and for stage 2."""
    spec = draw_spec(random.shown, STAGE_NOUNS, num_subjects=1 + (random.shown.random() < 0.3))
    # A few empty captions: stage 2 has to learn the null condition.
    words = "" if random.told.random() < NOTHING_SAID else _caption_of(spec, random)
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
    return _of(spec, Sample(fragments=fragments, images=images))


def _edit(random: Randomness) -> Sample:
    """Return an image, an edit instruction, and the image after the edit."""
    before = _draw_legible(random, STAGE_NOUNS, accessory=0.1, styled=0.1)
    after, instruction = text.edit(before, random.shown)
    while is_held_out(after) or not stands_out(after, random.size):
        after, instruction = text.edit(before, random.shown)
    fragments: text.Fragments = (None, " " + instruction)
    if random.told.random() < 0.25:  # the input caption, when kept
        fragments = (text.caption(before, random.told, colours=0.0) + " ", *fragments)
    fragments = text.as_typed(fragments, random.told)
    sample = Sample(fragments=fragments, images=(render(before, random.size).image,))
    return _of(after, sample, before=before)


def _caption(random: Randomness) -> Sample:
    """Return a caption and the image it describes: keeps text following alive in stage 3."""
    spec = _draw_legible(random, STAGE_NOUNS, num_subjects=1 + (random.shown.random() < 0.3))
    words = _caption_of(spec, random)
    return _of(spec, Sample(fragments=text.as_typed((words,), random.told), caption=words))


def _judged(random: Randomness) -> Sample:
    """Return two images of one instance for the recognisers of evaluation: a possible output and a reference.

    Nothing is held out here. `GROUP` neighbours share a noun, a colour word or both, so that neither alone identifies
    an instance.
    """
    group, rng = np.random.default_rng([4, random.seed, random.index // GROUP]), random.shown
    model = _recogniser_subject(group)
    alike = str(group.choice(["nothing", "noun", "colour", "both"], p=[0.25, 0.2, 0.2, 0.35]))
    noun = model.noun if alike in ("noun", "both") else None
    subjects = [_recogniser_subject(rng, noun, model.look.colour_name if alike in ("colour", "both") else None)]
    which = 0
    if rng.random() < 0.4:
        which = int(rng.integers(2))
        subjects.insert(1 - which, _recogniser_subject(rng))
    style = str(rng.choice(list(STYLES)[1:])) if rng.random() < 0.4 else "photo"
    scene = None if style == "minecraft" and rng.random() < 0.4 else str(rng.choice(list(SCENES)))
    spec = Spec(place(subjects, rng), scene, style, int(rng.integers(NUM_VARIANTS)))
    shown = reference(subjects[which], rng, random.size, keep_background=bool(rng.random() < 0.3))
    return _of(spec, Sample(images=(render(spec, random.size).image, shown)), subject=which)


def _described(random: Randomness) -> Sample:
    """Return an image for the CLIP of evaluation and its caption, which mostly names colours and patterns.

    Half of the groups share their scene and style too: where these distinguish images, subjects are hardly learnt.
    """
    judged, told = _judged(random), random.told
    truth: Truth = judged.truth
    whole, shown = judged.images
    if told.random() < 0.6:
        spec = truth.spec
        group = np.random.default_rng([9, random.seed, random.index // GROUP])
        if group.random() < 0.5:
            scene, style = str(group.choice(list(SCENES))), str(group.choice(list(STYLES)))
            spec = replace(spec, scene=scene, style=style)
            whole = render(spec, random.size).image
        return Sample(images=(whole,), caption=text.caption(spec, told, colours=0.85))
    subject = truth.spec.subjects[truth.subject].subject
    return Sample(images=(shown,), caption=text.describe(subject, colours=told.random() < 0.85, accessory=False))


def _rescened(random: Randomness) -> Sample:
    """Return one subject in the same pose in front of two backgrounds, for the self-supervised ViT of evaluation.

    Neighbours share properties as in `_judged`.
    """
    group, rng = np.random.default_rng([8, random.seed, random.index // GROUP]), random.shown
    model = _recogniser_subject(group)
    alike = str(group.choice(["nothing", "noun", "colour", "both"], p=[0.25, 0.2, 0.2, 0.35]))
    noun = model.noun if alike in ("noun", "both") else None
    subject = _recogniser_subject(rng, noun, model.look.colour_name if alike in ("colour", "both") else None)
    placed = place([subject], rng)
    style = str(rng.choice(list(STYLES)[1:])) if rng.random() < 0.3 else "photo"
    first, second = (str(scene) for scene in rng.choice(list(SCENES), 2))
    specs = [Spec(placed, scene, style, int(rng.integers(NUM_VARIANTS))) for scene in (first, second)]
    return _of(specs[0], Sample(images=tuple(render(spec, random.size).image for spec in specs)))


def _recogniser_subject(rng: np.random.Generator, noun: str | None = None, colour: str | None = None) -> Subject:
    """Return an instance that no generator sees in training or evaluation, of a given noun and colour if any."""
    worn = str(rng.choice(list(ACCESSORIES))) if rng.random() < 0.3 else None
    noun = noun or str(rng.choice(list(NOUNS)))
    while True:
        subject = Subject(noun, FIRST_RECOGNISER_IDENTITY + int(rng.integers(1 << 30)), worn)
        if colour in (None, subject.look.colour_name):
            return subject


SAMPLERS: dict[str, Callable[[Randomness], Sample]] = {
    "captioned": _captioned,
    "contrast": _contrast,
    "text": _text,
    "pair": _pair,
    "interleaved": _interleaved,
    "compositional": _compositional,
    "edit": _edit,
    "caption": _caption,
    "judged": _judged,
    "described": _described,
    "rescened": _rescened,
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
    "compositional": frozenset({"fragments", "images", "target", "truth"}),
    "edit": frozenset({"fragments", "images", "target", "truth"}),
    "caption": frozenset({"caption", "fragments", "target", "truth"}),
    "judged": frozenset({"images", "target", "truth"}),
    "described": frozenset({"caption", "images"}),
    "rescened": frozenset({"images", "target", "truth"}),
    "comic": frozenset({"caption", "target", "truth"}),
    "one": frozenset({"caption", "target", "truth"}),
    "two": frozenset({"caption", "target", "truth"}),
    "three": frozenset({"caption", "target", "truth"}),
}
