"""Image weights: one prompt as a weighted mean of prompts with fewer parts.

    0   the prompt without the image
    1   the prompt as it is
    2   the image only, without the words (and without images of a smaller weight)

In between, conditionings are interpolated. This works because the U-Net attends to a fixed number of vectors, each
from its own query. With several weighted images, the prompts are those that keep the images above a
threshold, for every threshold between 0 and 2 (the Lovasz extension of "which images are there"), so that at any mix of
0, 1 and 2 exactly the intended images take part.

Scaling the image's embeddings does not work: a norm in the first layer undoes it. Nor does adding the logarithm of the
weight to the attention scores: one attended token in a hundred is enough, so nothing changes before 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kgcli.data.prompt import ImageRef, Prompt


@dataclass(frozen=True)
class Term:
    """One prompt of the mean, all its weights 1."""

    fraction: float
    prompt: Prompt
    images: tuple[int, ...]  # indices of the prompt's images that it keeps


def weighted_terms(prompt: Prompt) -> list[Term]:
    """Return the terms of a prompt's weighted mean; fractions are above 0 and sum to 1."""
    weights = [ref.weight for ref in prompt.images]
    most = max(weights, default=1.0)
    whole = min(1.0, 2.0 - most)  # fraction of the terms with words
    bounds = sorted({0.0, 1.0, *(weight for weight in weights if weight < 1)})
    terms = [(whole * (upper - lower), lower, True) for lower, upper in zip(bounds, bounds[1:], strict=False)]
    bounds = sorted({1.0, *(weight for weight in weights if weight > 1)})
    terms += [(upper - lower, lower, False) for lower, upper in zip(bounds, bounds[1:], strict=False)]
    return [_term(prompt, weights, *term) for term in terms if term[0] > 0]


def _term(prompt: Prompt, weights: Sequence[float], fraction: float, threshold: float, with_words: bool) -> Term:
    """Return the prompt with the images above a threshold."""
    images = tuple(index for index, weight in enumerate(weights) if weight > threshold)
    numbers = iter(range(len(weights)))
    parts = tuple(
        replace(part, weight=1.0) if isinstance(part, ImageRef) else part
        for part in prompt.parts
        if (next(numbers) in images if isinstance(part, ImageRef) else with_words)
    )
    return Term(fraction, Prompt(parts=parts, text=prompt.text), images)
