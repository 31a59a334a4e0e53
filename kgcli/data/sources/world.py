"""Samples of the nano world by kind: one deterministic sample per (seed, index).

A sample has two random streams. What is shown (`spec`) depends on `index % pool`, so that a stage may work on a finite
pool of images whose VAE moments are cached; how it is told (words, reference images) depends on `index`.
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
    FLUENT_SIZE,
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
    FIRST_JUDGE_IDENTITY,
    NOUNS,
    SCENES,
    SEEN_NOUNS,
    STYLES,
)

BASE_NOUNS = [*SEEN_NOUNS, *BASE_ONLY_NOUNS]
STAGE_NOUNS = list(SEEN_NOUNS)
NOTHING_SAID = 0.04  # share of empty captions in text-only data
GROUP = 8  # neighbours in a batch of the judges that look alike but for one thing
CONTRAST_GROUP = 32  # neighbours in a batch of CLIP that look alike but for one thing


@dataclass(frozen=True)
class Truth:
    """What the world knows of a sample: the image to be generated or looked at, the image before an edit, and which of
    the subjects a reference shows."""

    spec: Spec
    before: Spec | None = None
    subject: int = 0


@dataclass(frozen=True)
class Chance:
    """The two random streams of one sample, where they come from, and the size of its pictures in pixels."""

    seed: int
    shown: np.random.Generator
    told: np.random.Generator
    index: int
    size: int
    drop_entity_text: float  # shares of compositional samples
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
    """The sample at `index` of the mixture `kinds` (kind -> weight). Same arguments, same sample.

    The two shares are of compositional samples: captions that leave out the nouns of their entities, and reference
    pictures that keep their background.
    """
    shown = np.random.default_rng([1, seed, index % pool if pool else index])
    told = np.random.default_rng([2, seed, index])
    weights = np.array(list(kinds.values()), float)
    kind = str(shown.choice(list(kinds), p=weights / weights.sum()))
    return SAMPLERS[kind](Chance(seed, shown, told, index, size, drop_entity_text, keep_background))


def _of(spec: Spec, sample: Sample, *, before: Spec | None = None, subject: int = 0) -> Sample:
    """Return the sample with `spec` as its target and truth."""
    return replace(sample, target=partial(_render, spec), truth=Truth(spec, before, subject))


def _render(spec: Spec, size: int) -> Target:
    rendered = render(spec, size)
    return Target(rendered.picture, rendered.masks)


def reference(subject: Subject, rng: np.random.Generator, size: int, *, keep_background: bool) -> Image.Image:
    """A fresh picture of an individual, as a user would give it: another place, another moment, cropped."""
    bare = Subject(subject.noun, subject.identity, None, subject.recoloured)
    spec = draw_spec(rng, [subject.noun], styled=0.0)
    spec = Spec(place([bare], rng), spec.scene, "photo", spec.variant)
    return crop(render(spec, size), 0, size, keep_background=keep_background)


def _captioned(chance: Chance, styled: float = 0.3) -> Sample:
    """A captioned picture for the text-to-image base."""
    two = chance.shown.random() < 0.3
    spec = _draw_legible(chance, BASE_NOUNS, num_subjects=1 + two, accessory=0.15, styled=styled)
    return _of(spec, Sample(caption=_caption_of(spec, chance)))


def _numbered(num: int, chance: Chance) -> Sample:
    """A captioned image of `num` subjects that stand out from their scene, its caption within CLIP's positions."""
    spec = _draw_legible(chance, BASE_NOUNS, num_subjects=num)
    return _of(spec, Sample(caption=text.short_caption(spec, chance.told)))


def _draw_legible(chance: Chance, nouns: list[str], **fractions: Any) -> Spec:
    """Return a random spec of `nouns` whose subjects stand out from its scene; `fractions` as of `draw_spec`."""
    while True:
        spec = draw_spec(chance.shown, nouns, **fractions)
        if stands_out(spec, chance.size):
            return spec


def _caption_of(spec: Spec, chance: Chance) -> str:
    """Return its caption: at 128 px no longer than the CLIP text encoder reads."""
    return (text.short_caption if chance.size == FLUENT_SIZE else text.caption)(spec, chance.told)


def _comic(chance: Chance) -> Sample:
    """A captioned picture in a style that the words do not name: what a LoRA is to paint, whatever it is told."""
    sample = _captioned(chance, styled=0.0)
    return _of(replace(sample.truth.spec, style="comic"), sample)


def _contrast(chance: Chance) -> Sample:
    """A picture and its caption for CLIP, in groups of `CONTRAST_GROUP` neighbours that are alike but for one thing.

    Where scene and colour tell pictures apart, no shape is ever learnt: in half of the groups only the noun differs.
    """
    group = np.random.default_rng([3, chance.seed, chance.index // CONTRAST_GROUP])
    alike = str(group.choice(["all but noun", "scene", "noun", "none"], p=[0.5, 0.15, 0.2, 0.15]))
    shared = draw_spec(group, BASE_NOUNS)
    cropped, whole = group.random() < 0.6, group.random() < 0.7
    if alike == "all but noun":
        noun = str(group.permutation(BASE_NOUNS)[chance.index % CONTRAST_GROUP])
        return _only_noun_differs(chance, noun, shared, cropped=bool(cropped), keep=not whole)
    rng = chance.shown
    nouns = [shared.subjects[0].subject.noun] if alike == "noun" else BASE_NOUNS
    spec = draw_spec(rng, nouns, accessory=0.15, num_subjects=1 + (rng.random() < 0.15), styled=0.2)
    moved = Spec(spec.subjects, shared.scene, shared.style, spec.variant)
    if alike == "scene" and not is_held_out(moved):
        spec = moved
    rendered = render(spec, chance.size)
    if len(spec.subjects) == 1 and rng.random() < 0.5:
        keep = bool(rng.random() < 0.3)
        words = text.describe(spec.subjects[0].subject, colours=rng.random() < 0.85)
        return Sample(images=(crop(rendered, 0, chance.size, keep_background=keep),), caption=words)
    return Sample(images=(rendered.picture,), caption=text.caption(spec, rng, colours=0.85))


def _only_noun_differs(chance: Chance, noun: str, shared: Spec, *, cropped: bool, keep: bool) -> Sample:
    """An individual of `noun` in the colour and the place of `shared`, alone or whole."""
    rng, model = chance.shown, shared.subjects[0].subject
    drawn = draw_subject(rng, [noun], accessory=0.0)
    subject = Subject(noun, drawn.identity, model.accessory, recoloured=model.look.colour_name)
    spec = Spec(place([subject], rng), shared.scene, shared.style, int(rng.integers(NUM_VARIANTS)))
    held_out = is_held_out(spec)
    if held_out:  # plain crops never are
        spec = Spec(spec.subjects, "studio", "photo", spec.variant)
    rendered = render(spec, chance.size)
    if cropped or held_out:
        picture = crop(rendered, 0, chance.size, keep_background=keep and not held_out)
        return Sample(images=(picture,), caption=text.describe(subject, colours=rng.random() < 0.7))
    return Sample(images=(rendered.picture,), caption=text.caption(spec, rng, colours=0.7))


def _text(chance: Chance) -> Sample:
    """A caption alone, for language modelling and for stage 2."""
    spec = draw_spec(chance.shown, STAGE_NOUNS, num_subjects=1 + (chance.shown.random() < 0.3))
    # Nothing at all is said now and then: what the null condition is, and where it has to go.
    words = "" if chance.told.random() < NOTHING_SAID else _caption_of(spec, chance)
    return Sample(fragments=text.as_typed((words,) if words else (), chance.told), caption=words)


def _pair(chance: Chance) -> Sample:
    """A picture and then its caption: colours and patterns have to be read off the picture."""
    spec = draw_spec(chance.shown, STAGE_NOUNS, num_subjects=1 + (chance.shown.random() < 0.15))
    rendered = render(spec, chance.size)
    if len(spec.subjects) == 1 and chance.told.random() < 0.6:
        words = text.describe(spec.subjects[0].subject, colours=True)
        keep = bool(chance.told.random() < 0.5)
        return Sample(fragments=(None, " " + words), images=(crop(rendered, 0, chance.size, keep_background=keep),))
    words = text.caption(spec, chance.told, colours=1.0)
    return Sample(fragments=(None, " " + words), images=(rendered.picture,))


def _interleaved(chance: Chance) -> Sample:
    """A story of two or three pictures of one individual."""
    subject = draw_subject(chance.shown, STAGE_NOUNS, accessory=0.0)
    specs = []
    for _ in range(int(chance.shown.integers(2, 4))):
        spec = draw_spec(chance.shown, [subject.noun], accessory=0.2)
        moment = Subject(subject.noun, subject.identity, spec.subjects[0].subject.accessory)
        specs.append(Spec(place([moment], chance.shown), spec.scene, spec.style, spec.variant))
    images = tuple(render(spec, chance.size).picture for spec in specs)
    return Sample(fragments=text.story(specs, chance.told), images=images)


def _compositional(chance: Chance) -> Sample:
    """A caption whose entities are each followed by a picture of that individual, and the picture to be made."""
    two = chance.shown.random() < 0.45
    spec = _draw_legible(chance, STAGE_NOUNS, num_subjects=1 + two, accessory=0.15)
    drop = bool(chance.told.random() < chance.drop_entity_text)  # once per caption, for all its entities
    images = tuple(
        reference(
            placed.subject,
            chance.told,
            chance.size,
            keep_background=bool(chance.told.random() < chance.keep_background),
        )
        for placed in spec.subjects
    )
    fragments = text.as_typed(text.compositional(spec, chance.told, drop=drop), chance.told)
    return _of(spec, Sample(fragments=fragments, images=images))


def _edit(chance: Chance) -> Sample:
    """A picture, an instruction, and the picture after the change."""
    before = _draw_legible(chance, STAGE_NOUNS, accessory=0.1, styled=0.1)
    after, instruction = text.edit(before, chance.shown)
    while is_held_out(after) or not stands_out(after, chance.size):
        after, instruction = text.edit(before, chance.shown)
    fragments: text.Fragments = (None, " " + instruction)
    if chance.told.random() < 0.25:  # the input caption, when kept
        fragments = (text.caption(before, chance.told, colours=0.0) + " ", *fragments)
    fragments = text.as_typed(fragments, chance.told)
    sample = Sample(fragments=fragments, images=(render(before, chance.size).picture,))
    return _of(after, sample, before=before)


def _caption(chance: Chance) -> Sample:
    """A caption alone and the picture it describes: keeps text following alive in stage 3."""
    spec = _draw_legible(chance, STAGE_NOUNS, num_subjects=1 + (chance.shown.random() < 0.3))
    words = _caption_of(spec, chance)
    return _of(spec, Sample(fragments=text.as_typed((words,), chance.told), caption=words))


def _judged(chance: Chance) -> Sample:
    """Two pictures of one individual for the judges of evaluation: as one may be asked for, and as a prompt shows it.

    Nothing is held out here. `GROUP` neighbours share a noun, a colour word or both, so that neither alone tells
    individuals apart.
    """
    group, rng = np.random.default_rng([4, chance.seed, chance.index // GROUP]), chance.shown
    model = _judge_subject(group)
    alike = str(group.choice(["nothing", "noun", "colour", "both"], p=[0.25, 0.2, 0.2, 0.35]))
    noun = model.noun if alike in ("noun", "both") else None
    subjects = [_judge_subject(rng, noun, model.look.colour_name if alike in ("colour", "both") else None)]
    which = 0
    if rng.random() < 0.4:
        which = int(rng.integers(2))
        subjects.insert(1 - which, _judge_subject(rng))
    style = str(rng.choice(list(STYLES)[1:])) if rng.random() < 0.4 else "photo"
    scene = None if style == "minecraft" and rng.random() < 0.4 else str(rng.choice(list(SCENES)))
    spec = Spec(place(subjects, rng), scene, style, int(rng.integers(NUM_VARIANTS)))
    shown = reference(subjects[which], rng, chance.size, keep_background=bool(rng.random() < 0.3))
    return _of(spec, Sample(images=(render(spec, chance.size).picture, shown)), subject=which)


def _described(chance: Chance) -> Sample:
    """One of the judges' pictures and its caption, colours and patterns mostly named: for the CLIP of evaluation.

    Half of the groups share their scene and style too: where these tell pictures apart, subjects are hardly learnt.
    """
    judged, told = _judged(chance), chance.told
    truth: Truth = judged.truth
    whole, shown = judged.images
    if told.random() < 0.6:
        spec = truth.spec
        group = np.random.default_rng([9, chance.seed, chance.index // GROUP])
        if group.random() < 0.5:
            scene, style = str(group.choice(list(SCENES))), str(group.choice(list(STYLES)))
            spec = replace(spec, scene=scene, style=style)
            whole = render(spec, chance.size).picture
        return Sample(images=(whole,), caption=text.caption(spec, told, colours=0.85))
    subject = truth.spec.subjects[truth.subject].subject
    return Sample(images=(shown,), caption=text.describe(subject, colours=told.random() < 0.85, accessory=False))


def _rescened(chance: Chance) -> Sample:
    """One subject as it stands, before two backgrounds: what self-supervision of evaluation makes its views of.

    Neighbours are alike as those of `_judged` are.
    """
    group, rng = np.random.default_rng([8, chance.seed, chance.index // GROUP]), chance.shown
    model = _judge_subject(group)
    alike = str(group.choice(["nothing", "noun", "colour", "both"], p=[0.25, 0.2, 0.2, 0.35]))
    noun = model.noun if alike in ("noun", "both") else None
    subject = _judge_subject(rng, noun, model.look.colour_name if alike in ("colour", "both") else None)
    placed = place([subject], rng)
    style = str(rng.choice(list(STYLES)[1:])) if rng.random() < 0.3 else "photo"
    first, second = (str(scene) for scene in rng.choice(list(SCENES), 2))
    specs = [Spec(placed, scene, style, int(rng.integers(NUM_VARIANTS))) for scene in (first, second)]
    return _of(specs[0], Sample(images=tuple(render(spec, chance.size).picture for spec in specs)))


def _judge_subject(rng: np.random.Generator, noun: str | None = None, colour: str | None = None) -> Subject:
    """An individual no generator sees in training or evaluation, of a given noun and colour word or of any."""
    worn = str(rng.choice(list(ACCESSORIES))) if rng.random() < 0.3 else None
    noun = noun or str(rng.choice(list(NOUNS)))
    while True:
        subject = Subject(noun, FIRST_JUDGE_IDENTITY + int(rng.integers(1 << 30)), worn)
        if colour in (None, subject.look.colour_name):
            return subject


SAMPLERS: dict[str, Callable[[Chance], Sample]] = {
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
# What all samples of a kind have; a prompt with images has no caption that a CLIP text encoder could read.
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
