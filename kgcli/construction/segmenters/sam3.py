"""SAM 3: the best instance of a noun.

Source: SAM 3: Segment Anything with Concepts (arXiv:2511.16719).
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from transformers import AutoProcessor, Sam3Model

from kgcli.construction.models import load_model, load_part, process
from kgcli.construction.segmenters.base import Mask, Segmenter, SegmenterOptions
from kgcli.construction.stage import Place


class Sam3Options(SegmenterOptions):
    """SAM 3."""

    model: str = "facebook/sam3"  # folder or Hub id
    threshold: float = Field(default=0.5, ge=0, lt=1)  # of the score of an instance
    mask_threshold: float = Field(default=0.5, gt=0, lt=1)  # of the probability of a pixel


class Sam3(Segmenter):
    """Masks of SAM 3: the best instance of a noun."""

    options_type = Sam3Options

    def __init__(self, options: Sam3Options, place: Place) -> None:
        super().__init__(options, place)
        folder = place.folders[options.model]
        self.processor = load_part(AutoProcessor.from_pretrained, folder)
        self.model = load_model(Sam3Model.from_pretrained, folder, place.device, kinds=("sam3", "sam3_video"))

    @torch.inference_mode()
    def masks(self, image: Image.Image, nouns: list[str]) -> list[Mask | None]:
        """Return the mask of the best instance of each noun."""
        return [self._mask(image, noun) for noun in nouns]

    def _mask(self, image: Image.Image, noun: str) -> Mask | None:
        inputs = process(self.processor, images=image, text=noun).to(self.device)
        outputs = self.model(**inputs)
        found = self.processor.post_process_instance_segmentation(
            outputs,
            threshold=self.options.threshold,
            mask_threshold=self.options.mask_threshold,
            target_sizes=[(image.height, image.width)],
        )[0]
        if not len(found["scores"]):
            return None
        return np.asarray(found["masks"][int(found["scores"].argmax())].cpu().numpy(), bool)
