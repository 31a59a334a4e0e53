"""CLIPSeg, as published, and its loader.

Source: Image Segmentation Using Text and Image Prompts (arXiv:2112.10003).
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from pydantic import Field
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor, CLIPTokenizer, ViTImageProcessorPil

from kgcli.construction.models import load_model, load_part, process
from kgcli.construction.segmenters.base import Mask, Segmenter, SegmenterOptions
from kgcli.construction.stage import Place


class ClipSegOptions(SegmenterOptions):
    """CLIPSeg; the threshold is the published script's."""

    model: str = "CIDAS/clipseg-rd64-refined"  # folder or Hub id
    threshold: float = Field(default=0.3, gt=0, lt=1)  # of the probability of a pixel


class ClipSeg(Segmenter):
    """Masks of CLIPSeg, as published."""

    options_type = ClipSegOptions

    def __init__(self, options: ClipSegOptions, place: Place) -> None:
        super().__init__(options, place)
        self.processor, self.model = load_clipseg(place.folders[options.model], place.device)

    @torch.inference_mode()
    def masks(self, image: Image.Image, nouns: list[str]) -> list[Mask | None]:
        """Return the pixels above the threshold, noun by noun."""
        found: list[Mask | None] = []
        for noun in nouns:
            inputs = process(self.processor, text=[noun], images=[image], padding=True).to(self.device)
            logits = self.model(**inputs).logits
            resized = torch.nn.functional.interpolate(
                logits.reshape(1, 1, *logits.shape[-2:]).float(), size=(image.height, image.width), mode="bilinear"
            )
            found.append((resized[0, 0].sigmoid() > self.options.threshold).cpu().numpy())
        return found


def load_clipseg(folder: str, device: str, **settings: Any) -> tuple[Any, Any]:
    """Return processor and model of a CLIPSeg folder.

    Args:
        settings: of the model's `from_pretrained`

    Raises: IncompatibleError in one line.
    """
    # Pillow's resize: torchvision's differs between its versions.
    pixels = load_part(ViTImageProcessorPil.from_pretrained, folder)
    processor = CLIPSegProcessor(pixels, load_part(CLIPTokenizer.from_pretrained, folder))
    load = CLIPSegForImageSegmentation.from_pretrained
    return processor, load_model(load, folder, device, kinds=("clipseg",), **settings)
