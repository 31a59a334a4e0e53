"""The nano twins of DreamBench and COCO: their data, rendered by the nano world, and their plans.

`nano-dreambench` has 30 instances of 30 nouns (21 objects and 9 live, as DreamBench), each with four to six photos, in
25 prompts: a scene, an accessory, a style. `nano-coco` has captions of held-out instances and compares with their true
renders and more of the same distribution. No stage, recogniser or extractor is trained on any of these instances.
Subjects, photos, prompts and captions are fixed; a seed affects only the noise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kgcli.errors import UsageError
from kgcli.evaluation.benchmarks.nano_world import VERSION
from kgcli.evaluation.plan import DreamBenchOptions, Item, Plan, derive_seed, fingerprint, requested_prompts
from kgcli.world import text
from kgcli.world.rendering import stands_out
from kgcli.world.spec import NUM_VARIANTS, Spec, Subject, draw_spec, draw_subject, place
from kgcli.world.tables import BASE_ONLY_NOUNS, SCENES, SEEN_NOUNS, STYLES

BASE_NOUNS = [*SEEN_NOUNS, *BASE_ONLY_NOUNS]
DREAMBENCH, COCO = "nano-dreambench", "nano-coco"
SEED = 1  # of subjects, photos and captions
LIVE_NOUNS = (
    "cat", "dog", "fox", "bear", "panda", "koala", "tiger", "cow", "pig", "frog", "monkey", "rabbit", "mouse", "chick",
    "penguin", "owl", "duck", "turtle", "fish", "whale", "elephant", "ladybug", "lion",
)  # fmt: skip
NUM_OBJECTS, NUM_LIVE = 21, 9
NUM_CAPTIONS = 2000
NUM_REAL = 4000
HELD_OUT_EVERY = 12  # one caption in 12 has a combination of noun, scene and style that no stage saw
UNIT = 8  # captions, or prompts of a subject, per batch
INPUT = "00.png"  # the input photo of each subject


@dataclass(frozen=True)
class Prompt:
    """The content of a prompt besides the subject."""

    kind: str  # context, accessory, attribute
    scene: str | None  # None: style alone
    style: str = "photo"
    accessory: str | None = None

    @property
    def words(self) -> str:
        """Text after the subject in the prompt."""
        worn = "" if self.accessory is None else f"wearing {_with_article(self.accessory)}"
        parts = (worn, SCENES[self.scene] if self.scene else "", STYLES[self.style])
        return " ".join(part for part in parts if part)


PROMPTS = (
    *(Prompt("context", scene) for scene in SCENES),
    Prompt("accessory", "beach", accessory="hat"),
    Prompt("accessory", "city", accessory="crown"),
    Prompt("accessory", "desert", accessory="sunglasses"),
    Prompt("accessory", "snow", accessory="scarf"),
    Prompt("attribute", None, "minecraft"),
    Prompt("attribute", "forest", "minecraft"),
    Prompt("attribute", "beach", "minecraft"),
    Prompt("attribute", "mountains", "oil"),
    Prompt("attribute", "garden", "oil"),
    Prompt("attribute", "ocean", "oil"),
    Prompt("attribute", "snow", "watercolor"),
    Prompt("attribute", "city", "watercolor"),
    Prompt("attribute", "night", "watercolor"),
)


@functools.cache
def subjects() -> Mapping[str, Subject]:
    """Return the instances of `nano-dreambench` by name, which is their noun: objects first."""
    rng = np.random.default_rng([21, SEED])
    objects = [noun for noun in BASE_NOUNS if noun not in LIVE_NOUNS]
    live = [noun for noun in BASE_NOUNS if noun in LIVE_NOUNS]
    nouns = [*rng.permutation(objects)[:NUM_OBJECTS], *rng.permutation(live)[:NUM_LIVE]]
    return {str(noun): draw_subject(rng, [str(noun)], new=True, accessory=0.0) for noun in nouns}


def category_of(noun: str) -> str:
    """Return `live` for animals, else `object`."""
    return "live" if noun in LIVE_NOUNS else "object"


def photo_specs(name: str) -> list[Spec]:
    """Return the specs of a subject's four to six photos, the input first: the subject alone, in different scenes from
    which it stands out."""
    order = list(subjects()).index(name)
    rng = np.random.default_rng([22, SEED, order])
    specs: list[Spec] = []
    for scene in rng.permutation(list(SCENES)):
        spec = Spec(place([subjects()[name]], rng), str(scene), "photo", int(rng.integers(NUM_VARIANTS)))
        if stands_out(spec):
            specs.append(spec)
        if len(specs) == 4 + order % 3:
            break
    return specs


def prompt_spec(subject: Subject, prompt: Prompt, seed: int) -> Spec:
    """Return the spec of a true image for a prompt: a function of the instance, the prompt and a seed."""
    rng = np.random.default_rng([23, SEED, seed])
    worn = dataclasses.replace(subject, accessory=prompt.accessory)
    return Spec(place([worn], rng), prompt.scene, prompt.style, int(rng.integers(NUM_VARIANTS)))


@functools.cache
def caption_of(index: int) -> tuple[str, Spec]:
    """Return caption `index` of `nano-coco` and the spec of its true image."""
    rng = np.random.default_rng([24, SEED, index])
    num, held_out = 1 + (rng.random() < 0.3), index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    while True:
        spec = draw_spec(rng, BASE_NOUNS, num_subjects=num, new=True, held_out=held_out)
        if stands_out(spec):
            return text.short_caption(spec, rng), spec


def dreambench_plan(data_sha256: str, data: Path, options: DreamBenchOptions, method: Mapping[str, Any]) -> Plan:
    """Return the plan of `nano-dreambench`; `data` is the folder of `nano_data.dreambench_data`, with its hash.

    Raises: UsageError for subjects or noise that the suite does not have.
    """
    options.check_subjects(subjects())
    if options.noise != "independent":
        raise UsageError(f"--noise is {options.noise}; the nano suite supports only independent noise")
    names = [name for name in subjects() if not options.subjects or name in options.subjects]
    items = tuple(item for name in names for item in _items_of_subject(name, options))
    protocol = {
        "suite": DREAMBENCH,
        "version": VERSION,
        "num_items": len(items),
        "num_subjects": len(names),
        "num_images": options.num_images,
        "subjects": options.named(subjects()),
        "prompts_sha256": fingerprint(requested_prompts(items)),
        "data_sha256": data_sha256,
    }
    settings = {"seed": options.seed, "class_noun": options.class_noun, "unit": UNIT}
    return Plan(suite=DREAMBENCH, protocol=protocol, method={**method, **settings}, data=str(data), items=items)


def coco_plan(
    data_sha256: str,
    data: Path,
    num: int,
    seed: int,
    method: Mapping[str, Any],
    num_real: int = NUM_REAL,
) -> Plan:
    """Return the plan of one image for each of the first captions; `data` is the folder of `nano_data.coco_data`.

    Raises: UsageError for more captions than there are true images.
    """
    check_captions(num, num_real)
    items = tuple(_item_of_caption(index, seed) for index in range(num))
    protocol = {
        "suite": COCO,
        "version": VERSION,
        "num_items": num,
        "num_real": num_real,
        "captions_sha256": fingerprint([item.scored_text for item in items]),
        "data_sha256": data_sha256,
    }
    settings = {"seed": seed, "unit": UNIT}
    return Plan(suite=COCO, protocol=protocol, method={**method, **settings}, data=str(data), items=items)


def check_captions(num: int, num_real: int = NUM_REAL) -> None:
    """Check that there are true images for all captions. Raises: UsageError."""
    if not 1 <= num <= num_real:
        raise UsageError(f"{num} captions are requested, but {COCO} has {num_real}; give --num")


def spec_of(item: Item, suite: str) -> Spec:
    """Return the spec of a true image for an item."""
    if suite == COCO:
        return caption_of(item.prompt)[1]
    return prompt_spec(subjects()[item.subject], PROMPTS[item.prompt], item.seed)


def _items_of_subject(name: str, options: DreamBenchOptions) -> Iterator[Item]:
    noun = subjects()[name].noun
    mark = f"{_with_article(noun)} <image>" if options.class_noun else "<image>"
    for prompt, content in enumerate(PROMPTS):
        for image in range(options.num_images):
            yield Item(
                path=f"images/{name}/{prompt:02d}_{image}.png",
                unit=f"{name}/{prompt // UNIT}",
                subject=name,
                prompt=prompt,
                image=image,
                input_text=f"{mark} {content.words}",
                scored_text=f"{_with_article(noun)} {content.words}",
                inputs=(f"{name}/{INPUT}",),
                seed=derive_seed(options.seed, DREAMBENCH, name, prompt, image),
                class_noun=noun,
                category=category_of(noun),
                kind=content.kind,
            )


def _item_of_caption(index: int, seed: int) -> Item:
    words = caption_of(index)[0]
    return Item(
        path=f"images/{index // 1000:03d}/{index:06d}.png",
        unit=f"{index // UNIT:06d}",
        subject=f"{index:06d}",
        prompt=index,
        image=0,
        input_text=words,
        scored_text=words,
        inputs=(),
        seed=derive_seed(seed, COCO, index),
    )


def _with_article(noun: str) -> str:
    if noun == "sunglasses":
        return noun
    return ("an " if noun[0] in "aeiou" else "a ") + noun
