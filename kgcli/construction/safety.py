"""Safety: images that a model calls explicit are dropped and counted.

Source: the ethics section of KOSMOS-G (arXiv:2310.02992).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from pydantic import Field
from transformers import AutoImageProcessor, AutoModelForImageClassification

from kgcli.construction.models import load_model, load_part, process
from kgcli.construction.stage import Draft, Options, Place
from kgcli.errors import UsageError


class SafetyCheckerOptions(Options):
    """Stable Diffusion's safety checker."""

    model: str = "CompVis/stable-diffusion-safety-checker"  # folder or Hub id


class SafetyChecker:
    """Drops what Stable Diffusion's safety checker calls explicit."""

    options_type = SafetyCheckerOptions

    def __init__(self, options: SafetyCheckerOptions, place: Place) -> None:
        folder = place.folders[options.model]
        self.device = place.device
        self.processor = load_part(AutoImageProcessor.from_pretrained, folder)
        self.model = load_model(StableDiffusionSafetyChecker.from_pretrained, folder, place.device)

    @torch.inference_mode()
    def apply(self, drafts: Sequence[Draft]) -> None:
        """Drop explicit images."""
        for draft in drafts:
            pixels = process(self.processor, images=draft.image).pixel_values.to(self.device)
            # The second is what the checker would black out: it is looked at by nobody.
            _, explicit = self.model(clip_input=pixels, images=np.zeros((1, 1, 1, 3), np.float32))
            if explicit[0]:
                draft.drop("explicit image")


class ClassifierOptions(Options):
    """Any classifier of images."""

    model: str = "Falconsai/nsfw_image_detection"  # folder or Hub id
    refuse: tuple[str, ...] = ("nsfw",)  # labels
    threshold: float = Field(default=0.5, gt=0, lt=1)  # of the probabilities of these labels together


class ImageClassifier:
    """Drops the images of some labels of any AutoModelForImageClassification."""

    options_type = ClassifierOptions

    def __init__(self, options: ClassifierOptions, place: Place) -> None:
        folder = place.folders[options.model]
        self.options, self.device = options, place.device
        self.processor = load_part(AutoImageProcessor.from_pretrained, folder)
        self.model = load_model(AutoModelForImageClassification.from_pretrained, folder, place.device)
        labels = {name.lower(): number for number, name in self.model.config.id2label.items()}
        if absent := [name for name in options.refuse if name.lower() not in labels]:
            raise UsageError(f"{options.model} has no label {absent[0]!r}; it has {', '.join(labels)}")
        self._refused = [labels[name.lower()] for name in options.refuse]

    @torch.inference_mode()
    def apply(self, drafts: Sequence[Draft]) -> None:
        """Drop images of the labels."""
        for draft in drafts:
            pixels = process(self.processor, images=draft.image).pixel_values.to(self.device)
            probabilities = self.model(pixel_values=pixels).logits[0].float().softmax(0)
            if float(probabilities[self._refused].sum()) >= self.options.threshold:
                draft.drop("explicit image")
