"""Samples for networks that recognise: CLIP and the networks of evaluation. Neighbours differ in one property.

Groups of neighbours are of rows, so that a row of a pool shows the same images whatever the index.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kgcli.data.sample import Sample
from kgcli.data.sources.world_sample import BASE_NOUNS, Randomness, Truth, reference, with_target
from kgcli.world import text
from kgcli.world.rendering import crop, render
from kgcli.world.spec import NUM_VARIANTS, Spec, Subject, draw_spec, draw_subject, is_held_out, place
from kgcli.world.tables import ACCESSORIES, FIRST_RECOGNISER_IDENTITY, NOUNS, SCENES, STYLES

GROUP = 8  # neighbours in a batch of the recognisers that differ in one property
CONTRAST_GROUP = 32  # neighbours in a batch of CLIP that differ in one property


def contrast(random: Randomness) -> Sample:
    """Return an image and its caption for CLIP; `CONTRAST_GROUP` neighbours share all but one property.

    Where scene and colour distinguish images, shapes are never learnt: in half of the groups only the noun differs.
    """
    group = np.random.default_rng([3, random.seed, random.row // CONTRAST_GROUP])
    alike = str(group.choice(["all but noun", "scene", "noun", "none"], p=[0.5, 0.15, 0.2, 0.15]))
    shared = draw_spec(group, BASE_NOUNS)
    cropped, whole = group.random() < 0.6, group.random() < 0.7
    if alike == "all but noun":
        noun = str(group.permutation(BASE_NOUNS)[random.row % CONTRAST_GROUP])
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
        exact = text.ALL_EXACT if rng.random() < text.SHADED else ()
        words = text.describe(spec.subjects[0].subject, colours=rng.random() < 0.85, exact=exact)
        return Sample(images=(crop(rendered, 0, random.size, keep_background=keep),), caption=words)
    return Sample(images=(rendered.image,), caption=text.short_caption(spec, rng, colours=0.85, shades=text.SHADED))


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


def judged(random: Randomness) -> Sample:
    """Return two images of one instance for the recognisers of evaluation: a possible output and a reference.

    Nothing is held out here. `GROUP` neighbours share a noun, a colour word or both, so that neither alone identifies
    an instance.
    """
    group, rng = np.random.default_rng([4, random.seed, random.row // GROUP]), random.shown
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
    return with_target(spec, Sample(images=(render(spec, random.size).image, shown)), subject=which)


def described(random: Randomness) -> Sample:
    """Return an image for the CLIP of evaluation and its caption, which mostly names colours and patterns.

    Half of the groups share their scene and style too: where these distinguish images, subjects are hardly learnt.
    """
    sample, told = judged(random), random.told
    truth: Truth = sample.truth
    whole, shown = sample.images
    if told.random() < 0.6:
        spec = truth.spec
        group = np.random.default_rng([9, random.seed, random.row // GROUP])
        if group.random() < 0.5:
            scene, style = str(group.choice(list(SCENES))), str(group.choice(list(STYLES)))
            spec = replace(spec, scene=scene, style=style)
            whole = render(spec, random.size).image
        return Sample(images=(whole,), caption=text.caption(spec, told, colours=0.85))
    subject = truth.spec.subjects[truth.subject].subject
    return Sample(images=(shown,), caption=text.describe(subject, colours=told.random() < 0.85, accessory=False))


def rescened(random: Randomness) -> Sample:
    """Return one subject in the same pose in front of two backgrounds, for the self-supervised ViT of evaluation.

    Neighbours share properties as in `judged`.
    """
    group, rng = np.random.default_rng([8, random.seed, random.row // GROUP]), random.shown
    model = _recogniser_subject(group)
    alike = str(group.choice(["nothing", "noun", "colour", "both"], p=[0.25, 0.2, 0.2, 0.35]))
    noun = model.noun if alike in ("noun", "both") else None
    subject = _recogniser_subject(rng, noun, model.look.colour_name if alike in ("colour", "both") else None)
    placed = place([subject], rng)
    style = str(rng.choice(list(STYLES)[1:])) if rng.random() < 0.3 else "photo"
    first, second = (str(scene) for scene in rng.choice(list(SCENES), 2))
    specs = [Spec(placed, scene, style, int(rng.integers(NUM_VARIANTS))) for scene in (first, second)]
    return with_target(specs[0], Sample(images=tuple(render(spec, random.size).image for spec in specs)))


def _recogniser_subject(rng: np.random.Generator, noun: str | None = None, colour: str | None = None) -> Subject:
    """Return an instance that no generator sees in training or evaluation, of a given noun and colour if any."""
    worn = str(rng.choice(list(ACCESSORIES))) if rng.random() < 0.3 else None
    noun = noun or str(rng.choice(list(NOUNS)))
    while True:
        subject = Subject(noun, FIRST_RECOGNISER_IDENTITY + int(rng.integers(1 << 30)), worn)
        if colour in (None, subject.look.colour_name):
            return subject
