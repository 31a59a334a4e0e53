"""The dial of an image's weight: one prompt as a weighted mean of prompts with fewer parts.

    0   the prompt as if the image were not in it
    1   the prompt as it is
    2   the image alone, without the words (and without images of a smaller weight)

In between, conditionings are interpolated. They can be: the U-Net attends to a fixed number of vectors, each written by
a query of its own. With several images at weights of their own, the prompts are those that keep the images above a
threshold, for every threshold between 0 and 2 (the Lovasz extension of "which images are there"), so that at any mix of
0, 1 and 2 exactly the images that should act do.

Why not the image's embeddings times the weight: a norm in the first layer undoes it. Why not the logarithm of the
weight on the attention scores: one attended token in a hundred is enough for the model, so nothing changes before 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kgcli.data.prompt import ImageRef, Prompt


@dataclass(frozen=True)
class Term:
    """One prompt of the mean, all its weights 1."""

    share: float
    prompt: Prompt
    images: tuple[int, ...]  # which of the whole prompt's images it keeps


def weighted_terms(prompt: Prompt) -> list[Term]:
    """Return the prompts whose mean a prompt stands for; shares add up to 1, and none is 0."""
    weights = [ref.weight for ref in prompt.images]
    most = max(weights, default=1.0)
    whole = min(1.0, 2.0 - most)  # the part of the mean that has words in it
    bounds = sorted({0.0, 1.0, *(weight for weight in weights if weight < 1)})
    terms = [(whole * (upper - lower), lower, True) for lower, upper in zip(bounds, bounds[1:], strict=False)]
    bounds = sorted({1.0, *(weight for weight in weights if weight > 1)})
    terms += [(upper - lower, lower, False) for lower, upper in zip(bounds, bounds[1:], strict=False)]
    return [_term(prompt, weights, *term) for term in terms if term[0] > 0]


def _term(prompt: Prompt, weights: Sequence[float], share: float, threshold: float, with_words: bool) -> Term:
    """The prompt with the images above a threshold."""
    images = tuple(index for index, weight in enumerate(weights) if weight > threshold)
    numbers = iter(range(len(weights)))
    parts = tuple(
        replace(part, weight=1.0) if isinstance(part, ImageRef) else part
        for part in prompt.parts
        if (next(numbers) in images if isinstance(part, ImageRef) else with_words)
    )
    return Term(share, Prompt(parts=parts, text=prompt.text), images)
