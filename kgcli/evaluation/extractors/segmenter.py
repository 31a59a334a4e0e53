"""CLIPSeg as a text-prompted segmenter.

Source: Image Segmentation Using Text and Image Prompts (arXiv:2112.10003).
"""

from __future__ import annotations

import functools
import json
import pickle
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor, CLIPTokenizer, ViTImageProcessorPil

from kgcli.errors import IncompatibleError
from kgcli.evaluation.extractors.published import first_line
from kgcli.evaluation.extractors.segmenter_files import PICKLED
from kgcli.evaluation.extractors.weight_files import Weights

PROMPT = "a {noun}"  # the wording of the benchmark's prompts
THRESHOLD = 0.5  # of the probability that a pixel belongs to the object


class ClipSegmenter:
    """Masks of a CLIPSeg folder, one image at a time, in float32."""

    def __init__(self, weights: Weights, device: str = "cpu") -> None:
        folder = weights.path.parent
        try:
            # Pillow's resize: torchvision's differs between its versions.
            pixels = ViTImageProcessorPil.from_pretrained(folder, local_files_only=True)
            words = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            model, loaded = CLIPSegForImageSegmentation.from_pretrained(
                folder,
                local_files_only=True,
                dtype=torch.float32,
                use_safetensors=weights.path.name != PICKLED,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
            raise IncompatibleError(f"the segmenter {folder} cannot be used: {first_line(error)}") from None
        absent = sorted(loaded["missing_keys"])
        if absent:
            raise IncompatibleError(
                f"{weights.path} is not a complete CLIPSeg: {len(absent)} weights are missing, the first is {absent[0]}"
            )
        self._processor = CLIPSegProcessor(pixels, words)
        self._model = model.eval().requires_grad_(False).to(device)
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
