"""Florence-2: an answer of polygons."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import Field
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from kgcli.construction.models import load_model, load_part, process
from kgcli.construction.segmenters.base import Mask, Segmenter, SegmenterOptions
from kgcli.construction.stage import Place
from kgcli.errors import IncompatibleError

POLYGONS = "polygons"
TASK = "<REFERRING_EXPRESSION_SEGMENTATION>"


class Florence2Options(SegmenterOptions):
    """Florence-2."""

    model: str = "florence-community/Florence-2-large-ft"  # folder or Hub id, in the format of transformers
    max_new_tokens: int = Field(default=512, ge=1)  # two a corner


class Florence2(Segmenter):
    """Masks of Florence-2: the polygons that it answers a noun with, filled.

    Source: Florence-2 (arXiv:2311.06242).
    """

    options_type = Florence2Options

    def __init__(self, options: Florence2Options, place: Place) -> None:
        super().__init__(options, place)
        folder = place.folders[options.model]
        self.processor = load_part(AutoProcessor.from_pretrained, folder)
        if POLYGONS not in (getattr(self.processor, "post_processor_config", None) or {}):
            raise IncompatibleError(
                f"the processor of {folder} has no rules for {POLYGONS}; use a Florence-2 in the format of "
                "transformers, as florence-community/Florence-2-large-ft"
            )
        load = Florence2ForConditionalGeneration.from_pretrained
        self.model = load_model(load, folder, place.device, kinds=("florence2",))

    @torch.inference_mode()
    def masks(self, image: Image.Image, nouns: list[str]) -> list[Mask | None]:
        """Return the polygons of each noun as a mask."""
        return [self._mask(image, noun) for noun in nouns]

    def _mask(self, image: Image.Image, noun: str) -> Mask | None:
        inputs = process(self.processor, images=image, text=f"{TASK}{noun}").to(self.device)
        ids = self.model.generate(**inputs, max_new_tokens=self.options.max_new_tokens, do_sample=False, num_beams=3)
        text = self.processor.batch_decode(ids, skip_special_tokens=False)[0]
        answer = self.processor.post_process_generation(text, task=TASK, image_size=image.size)[TASK]
        return fill([polygon for instance in answer[POLYGONS] for polygon in instance], image.size)


def fill(polygons: list[list[float]], size: tuple[int, int]) -> Mask | None:
    """Return a mask of polygons, each x1, y1, x2, y2 ...; None where none has an area.

    Args:
        size: of the mask, (width, height)
    """
    canvas = Image.new("1", size)
    for corners in polygons:
        if len(corners) >= 6:
            ImageDraw.Draw(canvas).polygon(corners[: len(corners) // 2 * 2], fill=1)
    mask = np.asarray(canvas, bool)
    return mask if mask.any() else None
