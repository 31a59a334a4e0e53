"""CLIPSeg as a text-prompted segmenter.

Source: Image Segmentation Using Text and Image Prompts (arXiv:2112.10003).
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kgcli.construction.segmenters.clipseg import load_clipseg
from kgcli.evaluation.extractors.segmenter_files import PICKLED
from kgcli.evaluation.extractors.weight_files import Weights

PROMPT = "a {noun}"  # the wording of the benchmark's prompts
THRESHOLD = 0.5  # of the probability that a pixel belongs to the object


class ClipSegmenter:
    """Masks of a CLIPSeg folder, one image at a time, in float32."""

    def __init__(self, weights: Weights, device: str = "cpu") -> None:
        folder, pickled = str(weights.path.parent), weights.path.name == PICKLED
        loaded = load_clipseg(folder, device, dtype=torch.float32, use_safetensors=not pickled)
        self._processor, self._model = loaded
        self._weights, self._sha256, self._device = weights, weights.sha256, device

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the weights again in another process, once for all subjects."""
        return _opened, (self._weights, self._device)

    def facts(self) -> dict[str, str]:
        """Return class, weights, transform, prompt and threshold."""
        of = self._processor.image_processor
        settings = {"size": dict(of.size), "resample": int(of.resample), "mean": of.image_mean, "std": of.image_std}
        return {
            "segmenter": f"transformers {type(self._model).__name__}",
            "weights_sha256": self._sha256,
            "transform": f"PIL {json.dumps(settings)}",
            "prompt": PROMPT,
            "threshold": f"sigmoid, bilinear to the picture's size, from {THRESHOLD}",
            "precision": "float32",
        }

    def mask(self, image: Image.Image, noun: str) -> Image.Image:
        """Return a mask: white for the object, black elsewhere."""
        marked_HW = self.probabilities(image, noun) >= THRESHOLD
        return Image.fromarray(marked_HW.to(torch.uint8).mul(255).numpy())

    @torch.inference_mode()
    def probabilities(self, image: Image.Image, noun: str) -> Tensor:
        """Return the probability, (H, W) in [0, 1], that a pixel belongs to the object of the noun."""
        inputs = self._processor(
            text=[PROMPT.format(noun=noun)], images=[image.convert("RGB")], return_tensors="pt"
        ).to(self._device)
        logits_1HW = self._model(**inputs).logits
        resized = torch.nn.functional.interpolate(
            logits_1HW[None].sigmoid(), size=image.size[::-1], mode="bilinear", align_corners=False
        )
        return resized[0, 0].cpu()


@functools.lru_cache(maxsize=1)
def _opened(weights: Weights, device: str) -> ClipSegmenter:
    return ClipSegmenter(weights, device)
