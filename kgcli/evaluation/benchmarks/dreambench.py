"""DreamBench as plans: 30 subjects, 25 prompts, 4 pictures each; and prompts of two and three subjects. No torch.

Two texts go with each picture. What a method reads drops the class noun ("<image> in the jungle", "<image>, red"):
the picture says what it is. What is scored is the prompt as DreamBooth wrote it ("a backpack in the jungle").
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
from kgcli.evaluation.plan import DreamBenchOptions, Item, Plan, asked_prompts, derive_seed, fingerprint

NUM_PROMPTS = 25
OFFICIAL_BATCH = 5  # prompts that the published script draws at once, after seeding anew
# How the paper drew: 100 steps of DPM-Solver++ at 512 pixels. Source: KOSMOS-G (arXiv:2310.02992).
DRAWING = SamplingConfig(
    num_inference_steps=100, guidance_scale=7.5, scheduler="dpm++-sigma-min", width=512, height=512
)
_STRIDE = 7  # between the subjects of a group: neighbours in the alphabet are often of one class


def single_plan(data: DreamBenchData, ask: DreamBenchOptions, method: Mapping[str, Any]) -> Plan:
    """One subject in each prompt: the DreamBench of all papers."""
    ask.check_subjects(SUBJECTS)
    names = [name for name in SUBJECTS if not ask.subjects or name in ask.subjects]
    items = [item for name in names for item in _items_of_subject(name, ask)]
    return _plan("dreambench", data, ask, method, items)


def multi_plan(data: DreamBenchData, ask: DreamBenchOptions, method: Mapping[str, Any]) -> Plan:
    """Two and three subjects in each prompt: 30 pairs and 30 triples, in the ten scenes that all subjects share."""
    ask.check_subjects(SUBJECTS)
    groups = [group for num in (2, 3) for group in subject_groups(num)]
    groups = [group for group in groups if not ask.subjects or set(group) <= set(ask.subjects)]
    if not groups:
        raise UsageError("--subjects leaves no pair or triple of the suite; name more of them")
    items = [item for group in groups for item in _items_of_group(group, ask)]
    return _plan("dreambench-multi", data, ask, method, items)


def subject_groups(num: int) -> list[tuple[str, ...]]:
    """One group of subjects of different classes for each subject, always the same."""
    return [_group_of(start, num) for start in range(len(SUBJECTS))]


def input_text(subject: str, prompt: int, class_noun: bool) -> str:
    """What a method reads."""
    noun = f"{SUBJECTS[subject][0]} <image>" if class_noun else "<image>"
    if prompt >= NUM_PROMPTS - len(ATTRIBUTES):
        return f"{noun}, {ATTRIBUTES[prompt - NUM_PROMPTS + len(ATTRIBUTES)]}"
    return f"{noun} {context_of(category_of(subject), prompt)}"


def kind_of(subject: str, prompt: int) -> str:
    """What a prompt asks for: another context, an accessory or an attribute."""
    if prompt >= NUM_PROMPTS - len(ATTRIBUTES):
        return "attribute"
    return "accessory" if category_of(subject) == "live" and prompt >= len(SHARED_PROMPTS) else "context"


def noise_seed(ask: DreamBenchOptions, subject: str, prompt: int, image: int) -> int:
    """The seed of one picture.

    `official` keeps what the published script's re-seeding does: with four pictures a prompt there are 20 different
    latents in all, shared by all subjects and by every fifth prompt. (Its very values are of a GPU's generator.)
    """
    if ask.noise == "official":
        return derive_seed(ask.seed, "official", image * OFFICIAL_BATCH + prompt % OFFICIAL_BATCH)
    return derive_seed(ask.seed, subject, prompt, image)


def _items_of_subject(subject: str, ask: DreamBenchOptions) -> Iterator[Item]:
    noun, category = SUBJECTS[subject][0], category_of(subject)
    for prompt in range(NUM_PROMPTS):
        for image in range(ask.num_images):
            yield Item(
                path=f"images/{subject}/{prompt:02d}_{image}.png",
                unit=f"{subject}/{prompt:02d}",
                subject=subject,
                prompt=prompt,
                image=image,
                input_text=input_text(subject, prompt, ask.class_noun),
                scored_text=prompt_text(noun, category, prompt),
                inputs=(input_photo(subject),),
                seed=noise_seed(ask, subject, prompt, image),
                class_noun=noun,
                category=category,
                kind=kind_of(subject, prompt),
            )


def _items_of_group(group: tuple[str, ...], ask: DreamBenchOptions) -> Iterator[Item]:
    name, nouns = "+".join(group), [SUBJECTS[subject][0] for subject in group]
    marks = [f"{noun} <image>" if ask.class_noun else "<image>" for noun in nouns]
    categories = {category_of(subject) for subject in group}
    for prompt, scene in enumerate(SHARED_PROMPTS):
        for image in range(ask.num_images):
            yield Item(
                path=f"images/{name}/{prompt:02d}_{image}.png",
                unit=f"{name}/{prompt:02d}",
                subject=name,
                prompt=prompt,
                image=image,
                input_text=f"{_enumerated(marks)} {scene}",
                scored_text=f"{_enumerated([f'a {noun}' for noun in nouns])} {scene}",
                inputs=tuple(input_photo(subject) for subject in group),
                seed=noise_seed(ask, name, prompt, image),
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
    suite: str, data: DreamBenchData, ask: DreamBenchOptions, method: Mapping[str, Any], items: Sequence[Item]
) -> Plan:
    """What is asked and measured is the protocol; how it was drawn belongs to the method."""
    protocol = {
        "suite": suite,
        "num_items": len(items),
        "num_subjects": len({item.subject for item in items}),
        "num_images": ask.num_images,
        "subjects": ask.named(SUBJECTS),
        "prompts_sha256": fingerprint(asked_prompts(items)),
        "data_sha256": data.sha256,
    }
    drawing = {
        name: value for name, value in dataclasses.asdict(ask).items() if name in ("seed", "noise", "class_noun")
    }
    return Plan(
        suite=suite,
        protocol=protocol,
        method={**method, **drawing},
        data=str(data.folder),
        items=tuple(items),
    )
