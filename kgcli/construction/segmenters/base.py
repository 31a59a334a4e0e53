"""The base of all segmenters, and of those that take SAM 2's mask in a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from transformers import AutoProcessor, Sam2Model

from kgcli.construction.crops import cut_out
from kgcli.construction.models import load_model, load_part, process
from kgcli.construction.stage import Draft, Options, Place

Mask = NDArray[np.bool_]
Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels


class SegmenterOptions(Options):
    """Options of every segmenter."""

    size: int = Field(default=512, ge=16)  # pixels of the crops


class Segmenter:
    """Cuts out the entities by the masks of `masks`; an entity without one is left in the text alone."""

    options_type: type[Options] = SegmenterOptions

    def __init__(self, options: Any, place: Place) -> None:
        self.options, self.device = options, place.device

    def apply(self, drafts: Sequence[Draft]) -> None:
        """Cut out the entities of each image."""
        for draft in drafts:
            masks = self.masks(draft.image, [noun for noun, _ in draft.entities])
            draft.cuts = [None if mask is None else cut_out(draft.image, mask, self.options.size) for mask in masks]
            if not any(draft.cuts):
                draft.drop("no entity in the image")

    def masks(self, image: Image.Image, nouns: list[str]) -> list[Mask | None]:
        """Return the mask, (H, W), of each noun, None where the image does not show it."""
        raise NotImplementedError


class BoxOptions(SegmenterOptions):
    """A mask of SAM 2 in a box."""

    model: str = "facebook/sam2.1-hiera-large"  # folder or Hub id of SAM 2


class BoxSegmenter(Segmenter):
    """Masks of SAM 2 in the box that `box` finds for a noun.

    Source: SAM 2 (arXiv:2408.00714).
    """

    options_type = BoxOptions

    def __init__(self, options: Any, place: Place) -> None:
        super().__init__(options, place)
        folder = place.folders[options.model]
        self.sam_processor = load_part(AutoProcessor.from_pretrained, folder)
        self.sam = load_model(Sam2Model.from_pretrained, folder, place.device, kinds=("sam2", "sam2_video"))

    @torch.inference_mode()
    def masks(self, image: Image.Image, nouns: list[str]) -> list[Mask | None]:
        """Return the mask in the box of each noun."""
        boxes = [self.box(image, noun) for noun in nouns]
        return [None if box is None else self._mask(image, box) for box in boxes]

    def box(self, image: Image.Image, noun: str) -> Box | None:
        """Return the box of a noun, inside the image; None where the image does not show it."""
        raise NotImplementedError

    def _mask(self, image: Image.Image, box: Box) -> Mask:
        inputs = process(self.sam_processor, images=image, input_boxes=[[list(box)]]).to(self.device)
        outputs = self.sam(**inputs, multimask_output=False)
        masks = self.sam_processor.post_process_masks(outputs.pred_masks.cpu(), inputs["original_sizes"].cpu())
        return np.asarray(masks[0].reshape(-1, image.height, image.width)[0].numpy(), bool)


def box_inside(corners: Sequence[float], image: Image.Image) -> Box | None:
    """Return a box cut to the image; None where nothing is left of it.

    Args:
        corners: x, y, x, y of two opposite corners, pixels
    """
    (left, right), (top, bottom) = sorted(corners[::2]), sorted(corners[1::2])
    box = (max(left, 0.0), max(top, 0.0), min(right, float(image.width)), min(bottom, float(image.height)))
    return box if box[2] > box[0] and box[3] > box[1] else None
