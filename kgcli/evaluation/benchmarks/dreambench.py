"""DreamBench as plans: 30 subjects, 25 prompts, 4 images each; and prompts of two and three subjects.

Each image has two texts. The method's prompt omits the class noun ("<image> in the jungle", "<image>, red"), which
the image shows. The scored text is DreamBooth's prompt ("a backpack in the jungle").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kgcli.config import SamplingConfig
from kgcli.errors import UsageError
from kgcli.evaluation.benchmarks.dreambench_data import (
    ATTRIBUTES,
    SHARED_PROMPTS,
    SUBJECTS,
    DreamBenchData,
    category_of,
    context_of,
    input_photo,
    prompt_text,
)
from kgcli.evaluation.plan import DreamBenchOptions, Item, Plan, derive_seed, fingerprint, requested_prompts

NUM_PROMPTS = 25
OFFICIAL_BATCH = 5  # batch size of the published script, which reseeds before each batch
# Sampling settings of the paper: 100 steps of DPM-Solver++ at 512 pixels. Source: KOSMOS-G (arXiv:2310.02992).
SAMPLING = SamplingConfig(
    num_inference_steps=100, guidance_scale=7.5, scheduler="dpm++-sigma-min", width=512, height=512
)
_STRIDE = 7  # between the subjects of a group: neighbours in the alphabet are often of one class


def single_plan(data: DreamBenchData, options: DreamBenchOptions, method: Mapping[str, Any]) -> Plan:
    """Return the plan of one subject per prompt, the usual DreamBench."""
    options.check_subjects(SUBJECTS)
    names = [name for name in SUBJECTS if not options.subjects or name in options.subjects]
    items = [item for name in names for item in _items_of_subject(name, options)]
    return _plan("dreambench", data, options, method, items)


def multi_plan(data: DreamBenchData, options: DreamBenchOptions, method: Mapping[str, Any]) -> Plan:
    """Return the plan of 30 pairs and 30 triples of subjects in the ten scenes that all subjects share."""
    options.check_subjects(SUBJECTS)
    groups = [group for num in (2, 3) for group in subject_groups(num)]
    groups = [group for group in groups if not options.subjects or set(group) <= set(options.subjects)]
    if not groups:
        raise UsageError("--subjects leaves no pair or triple of the suite; give more subjects")
    items = [item for group in groups for item in _items_of_group(group, options)]
    return _plan("dreambench-multi", data, options, method, items)


def subject_groups(num: int) -> list[tuple[str, ...]]:
    """Return a fixed group of subjects of different classes for each subject."""
    return [_group_of(start, num) for start in range(len(SUBJECTS))]


def input_text(subject: str, prompt: int, class_noun: bool) -> str:
    """Return the prompt of the method."""
    noun = f"{SUBJECTS[subject][0]} <image>" if class_noun else "<image>"
    if prompt >= NUM_PROMPTS - len(ATTRIBUTES):
        return f"{noun}, {ATTRIBUTES[prompt - NUM_PROMPTS + len(ATTRIBUTES)]}"
    return f"{noun} {context_of(category_of(subject), prompt)}"


def kind_of(subject: str, prompt: int) -> str:
    """Return the kind of a prompt: context, accessory or attribute."""
    if prompt >= NUM_PROMPTS - len(ATTRIBUTES):
        return "attribute"
    return "accessory" if category_of(subject) == "live" and prompt >= len(SHARED_PROMPTS) else "context"


def noise_seed(options: DreamBenchOptions, subject: str, prompt: int, image: int) -> int:
    """Return the seed of one image.

    `official` follows the re-seeding of the published script: with four images per prompt there are 20 different
    latents, shared by all subjects and every fifth prompt. (Its exact values come from a GPU generator.)
    """
    if options.noise == "official":
        return derive_seed(options.seed, "official", image * OFFICIAL_BATCH + prompt % OFFICIAL_BATCH)
    return derive_seed(options.seed, subject, prompt, image)


def _items_of_subject(subject: str, options: DreamBenchOptions) -> Iterator[Item]:
    noun, category = SUBJECTS[subject][0], category_of(subject)
    for prompt in range(NUM_PROMPTS):
        for image in range(options.num_images):
            yield Item(
                path=f"images/{subject}/{prompt:02d}_{image}.png",
                unit=f"{subject}/{prompt:02d}",
                subject=subject,
                prompt=prompt,
                image=image,
                input_text=input_text(subject, prompt, options.class_noun),
                scored_text=prompt_text(noun, category, prompt),
                inputs=(input_photo(subject),),
                seed=noise_seed(options, subject, prompt, image),
                class_noun=noun,
                category=category,
                kind=kind_of(subject, prompt),
            )


def _items_of_group(group: tuple[str, ...], options: DreamBenchOptions) -> Iterator[Item]:
    name, nouns = "+".join(group), [SUBJECTS[subject][0] for subject in group]
    marks = [f"{noun} <image>" if options.class_noun else "<image>" for noun in nouns]
    categories = {category_of(subject) for subject in group}
    for prompt, scene in enumerate(SHARED_PROMPTS):
        for image in range(options.num_images):
            yield Item(
                path=f"images/{name}/{prompt:02d}_{image}.png",
                unit=f"{name}/{prompt:02d}",
                subject=name,
                prompt=prompt,
                image=image,
                input_text=f"{_enumerated(marks)} {scene}",
                scored_text=f"{_enumerated([f'a {noun}' for noun in nouns])} {scene}",
                inputs=tuple(input_photo(subject) for subject in group),
                seed=noise_seed(options, name, prompt, image),
                class_noun=_enumerated(nouns),
                category=categories.pop() if len(categories) == 1 else "mixed",
                kind={2: "two", 3: "three"}[len(group)],
            )


def _group_of(start: int, num: int) -> tuple[str, ...]:
    names = list(SUBJECTS)
    group, at = [names[start]], start
    while len(group) < num:
        at += _STRIDE
        while SUBJECTS[names[at % len(names)]][0] in {SUBJECTS[name][0] for name in group}:
            at += 1
        group.append(names[at % len(names)])
    return tuple(group)


def _enumerated(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _plan(
    suite: str, data: DreamBenchData, options: DreamBenchOptions, method: Mapping[str, Any], items: Sequence[Item]
) -> Plan:
    """Build a plan: items and data belong to the protocol, generation settings to the method."""
    protocol = {
        "suite": suite,
        "num_items": len(items),
        "num_subjects": len({item.subject for item in items}),
        "num_images": options.num_images,
        "subjects": options.named(SUBJECTS),
        "prompts_sha256": fingerprint(requested_prompts(items)),
        "data_sha256": data.sha256,
    }
    settings = {
        name: value for name, value in dataclasses.asdict(options).items() if name in ("seed", "noise", "class_noun")
    }
    return Plan(
        suite=suite,
        protocol=protocol,
        method={**method, **settings},
        data=str(data.folder),
        items=tuple(items),
    )
