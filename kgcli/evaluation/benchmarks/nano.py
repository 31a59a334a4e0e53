"""The nano twins of DreamBench and COCO: their data, rendered by the nano world, and their plans. No torch.

`nano-dreambench` asks for 30 individuals of 30 nouns (21 objects and 9 live, as DreamBench has), each known by four to
six photos, in 25 prompts: a scene, something to wear, a style. `nano-coco` asks for captions of held-out individuals
and compares with their true pictures and more of the kind. No stage is trained on any of these individuals, nor are
the judges and extractors. Subjects, photos, prompts and captions are always the same; a seed is of the noise alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kgcli.config import SamplingConfig
from kgcli.errors import UsageError
from kgcli.evaluation.plan import DreamBenchOptions, Item, Plan, asked_prompts, derive_seed, fingerprint
from kgcli.world import text
from kgcli.world.scenes import NUM_VARIANTS
from kgcli.world.spec import Spec, Subject, draw_spec, draw_subject, place
from kgcli.world.tables import BASE_ONLY_NOUNS, SCENES, SEEN_NOUNS, STYLES

BASE_NOUNS = [*SEEN_NOUNS, *BASE_ONLY_NOUNS]
DREAMBENCH, COCO = "nano-dreambench", "nano-coco"
VERSION = 1  # of the data and prompts: a new number whenever a figure would mean something else
SIZE = 64  # pixels
LIVE_NOUNS = (
    "cat", "dog", "fox", "bear", "panda", "koala", "tiger", "cow", "pig", "frog", "monkey", "rabbit", "mouse", "chick",
    "penguin", "owl", "duck", "turtle", "fish", "whale", "elephant", "ladybug", "lion",
)  # fmt: skip
NUM_OBJECTS, NUM_LIVE = 21, 9
NUM_CAPTIONS = 2000
NUM_REAL = 4000
HELD_OUT_EVERY = 12  # captions: one in so many has a noun, scene and style that no stage saw together
UNIT = 8  # captions, or prompts of a subject, drawn at once
INPUT = "00.png"  # the photo of each subject that a method sees
# How nano models are drawn with.
DRAWING = SamplingConfig(num_inference_steps=25, guidance_scale=3.0, scheduler="ddim", width=SIZE, height=SIZE)


@dataclass(frozen=True)
class Asked:
    """What a prompt asks for beside the subject."""

    kind: str  # context, accessory, attribute
    scene: str | None  # None leaves the place to the style
    style: str = "photo"
    accessory: str | None = None

    @property
    def words(self) -> str:
        """What follows the subject in the prompt."""
        worn = "" if self.accessory is None else f"wearing {_with_article(self.accessory)}"
        parts = (worn, SCENES[self.scene] if self.scene else "", STYLES[self.style])
        return " ".join(part for part in parts if part)


PROMPTS = (
    *(Asked("context", scene) for scene in SCENES),
    Asked("accessory", "beach", accessory="hat"),
    Asked("accessory", "city", accessory="crown"),
    Asked("accessory", "desert", accessory="sunglasses"),
    Asked("accessory", "snow", accessory="scarf"),
    Asked("attribute", None, "minecraft"),
    Asked("attribute", "forest", "minecraft"),
    Asked("attribute", "beach", "minecraft"),
    Asked("attribute", "mountains", "oil"),
    Asked("attribute", "garden", "oil"),
    Asked("attribute", "ocean", "oil"),
    Asked("attribute", "snow", "watercolor"),
    Asked("attribute", "city", "watercolor"),
    Asked("attribute", "night", "watercolor"),
)


@functools.cache
def subjects() -> Mapping[str, Subject]:
    """The individuals of `nano-dreambench` by name, which is their noun: objects first."""
    rng = np.random.default_rng([21, VERSION])
    objects = [noun for noun in BASE_NOUNS if noun not in LIVE_NOUNS]
    live = [noun for noun in BASE_NOUNS if noun in LIVE_NOUNS]
    nouns = [*rng.permutation(objects)[:NUM_OBJECTS], *rng.permutation(live)[:NUM_LIVE]]
    return {str(noun): draw_subject(rng, [str(noun)], new=True, accessory=0.0) for noun in nouns}


def category_of(noun: str) -> str:
    """`live` for animals, `object` for all else."""
    return "live" if noun in LIVE_NOUNS else "object"


def photo_specs(name: str) -> list[Spec]:
    """What the four to six photos of a subject show, the input first: it alone, each time in another scene."""
    order = list(subjects()).index(name)
    rng = np.random.default_rng([22, VERSION, order])
    scenes = rng.permutation(list(SCENES))[: 4 + order % 3]
    return [
        Spec(place([subjects()[name]], rng), str(scene), "photo", int(rng.integers(NUM_VARIANTS))) for scene in scenes
    ]


def asked_spec(subject: Subject, asked: Asked, seed: int) -> Spec:
    """A picture that is right for a prompt: a function of the individual, the prompt and a seed."""
    rng = np.random.default_rng([23, VERSION, seed])
    worn = dataclasses.replace(subject, accessory=asked.accessory)
    return Spec(place([worn], rng), asked.scene, asked.style, int(rng.integers(NUM_VARIANTS)))


@functools.cache
def caption_of(index: int) -> tuple[str, Spec]:
    """Caption `index` of `nano-coco` and what its true picture shows."""
    rng = np.random.default_rng([24, VERSION, index])
    num, held_out = 1 + (rng.random() < 0.3), index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    spec = draw_spec(rng, BASE_NOUNS, num_subjects=num, new=True, held_out=held_out)
    return text.caption(spec, rng), spec


def dreambench_plan(data_sha256: str, data: Path, ask: DreamBenchOptions, method: Mapping[str, Any]) -> Plan:
    """One subject in each prompt; `data` is the folder of `nano_data.dreambench_data` and `data_sha256` its hash.

    Raises: UsageError for subjects or noise that the suite does not have.
    """
    ask.check_subjects(subjects())
    if ask.noise != "independent":
        raise UsageError(f"--noise is {ask.noise}; the nano suite has independent noise alone")
    names = [name for name in subjects() if not ask.subjects or name in ask.subjects]
    items = tuple(item for name in names for item in _items_of_subject(name, ask))
    protocol = {
        "suite": DREAMBENCH,
        "version": VERSION,
        "num_items": len(items),
        "num_subjects": len(names),
        "num_images": ask.num_images,
        "subjects": ask.named(subjects()),
        "prompts_sha256": fingerprint(asked_prompts(items)),
        "data_sha256": data_sha256,
    }
    drawing = {"seed": ask.seed, "class_noun": ask.class_noun, "unit": UNIT}
    return Plan(suite=DREAMBENCH, protocol=protocol, method={**method, **drawing}, data=str(data), items=items)


def coco_plan(
    data_sha256: str, data: Path, num: int, seed: int, method: Mapping[str, Any], num_real: int = NUM_REAL
) -> Plan:
    """A picture for each of the first captions; `data` is the folder of `nano_data.coco_data`.

    Raises: UsageError for more captions than there are true pictures.
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
    facts = {**method, "seed": seed, "unit": UNIT}
    return Plan(suite=COCO, protocol=protocol, method=facts, data=str(data), items=items)


def check_captions(num: int, num_real: int = NUM_REAL) -> None:
    """Raises: UsageError for more captions than there are true pictures."""
    if not 1 <= num <= num_real:
        raise UsageError(f"{num} captions are asked for, {COCO} has {num_real}; give --num")


def spec_of(item: Item, suite: str) -> Spec:
    """A picture that is right for an item."""
    if suite == COCO:
        return caption_of(item.prompt)[1]
    return asked_spec(subjects()[item.subject], PROMPTS[item.prompt], item.seed)


def _items_of_subject(name: str, ask: DreamBenchOptions) -> Iterator[Item]:
    noun = subjects()[name].noun
    mark = f"{_with_article(noun)} <image>" if ask.class_noun else "<image>"
    for prompt, asked in enumerate(PROMPTS):
        for image in range(ask.num_images):
            yield Item(
                path=f"images/{name}/{prompt:02d}_{image}.png",
                unit=f"{name}/{prompt // UNIT}",
                subject=name,
                prompt=prompt,
                image=image,
                input_text=f"{mark} {asked.words}",
                scored_text=f"{_with_article(noun)} {asked.words}",
                inputs=(f"{name}/{INPUT}",),
                seed=derive_seed(ask.seed, DREAMBENCH, name, prompt, image),
                class_noun=noun,
                category=category_of(noun),
                kind=asked.kind,
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
