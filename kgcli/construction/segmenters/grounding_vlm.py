"""A vision-language model that answers with the box of a noun, and SAM 2's mask in it."""

from __future__ import annotations

import re

from PIL import Image
from pydantic import Field

from kgcli.construction.models import JsonGrammar
from kgcli.construction.segmenters.base import Box, BoxOptions, BoxSegmenter, box_inside
from kgcli.construction.stage import Place
from kgcli.construction.vlm import VisionLanguageModel

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf'"bbox_2d"\s*:\s*\[{",".join([_NUMBER] * 4)}\]')


class GroundingVlmOptions(BoxOptions):
    """A model that grounds nouns, and SAM 2's mask in its box."""

    detector: str = "Qwen/Qwen3-VL-4B-Instruct"  # folder or Hub id of an image-text-to-text model
    prompt: str = (
        'Locate the {noun} in the image. Answer as JSON: {{"bbox_2d": [x1, y1, x2, y2]}}, or {{"bbox_2d": null}} if '
        "the image does not show it."
    )
    full_scale: int = Field(default=1000, ge=1)  # the model's coordinate of the right and bottom edge of the image
    max_new_tokens: int = Field(default=64, ge=1)
    constrained: bool = True  # bind the answer to this JSON, where xgrammar is installed


class GroundingVlm(BoxSegmenter):
    """Masks of SAM 2 in the box that a vision-language model answers with, as Qwen3-VL does.

    Source: Qwen3-VL (arXiv:2511.21631).
    """

    options_type = GroundingVlmOptions

    def __init__(self, options: GroundingVlmOptions, place: Place) -> None:
        super().__init__(options, place)
        self.vlm = VisionLanguageModel(place.folders[options.detector], place.device)
        self.grammar: JsonGrammar | None = None
        if options.constrained and JsonGrammar.is_installed():
            self.grammar = JsonGrammar(self.vlm.tokenizer, self.vlm.vocab_size)

    def box(self, image: Image.Image, noun: str) -> Box | None:
        """Return the box of the answer; None where it has none."""
        options = self.options
        bound = [] if self.grammar is None else [self.grammar.processor(schema_of(options.full_scale))]
        prompt = options.prompt.format(noun=noun)
        answer = self.vlm.answer(image, prompt, max_new_tokens=options.max_new_tokens, logits_processor=bound)
        corners = parse_box(answer)
        if corners is None:
            return None
        scales = [side / options.full_scale for side in (*image.size, *image.size)]
        return box_inside([value * scale for value, scale in zip(corners, scales, strict=True)], image)


def parse_box(answer: str) -> Box | None:
    """Return the first box of an answer, in the model's coordinates; None without one."""
    found = _BOX.search(answer)
    if found is None:
        return None
    left, top, right, bottom = (float(one) for one in found.groups())
    return left, top, right, bottom


def schema_of(full_scale: int) -> dict[str, object]:
    """Return the JSON schema of an answer: a box, or null."""
    place = {"type": "integer", "minimum": 0, "maximum": full_scale}
    box = {"type": "array", "prefixItems": [place] * 4, "minItems": 4, "maxItems": 4, "items": False}
    return {
        "type": "object",
        "properties": {"bbox_2d": {"anyOf": [box, {"type": "null"}]}},
        "required": ["bbox_2d"],
        "additionalProperties": False,
    }
