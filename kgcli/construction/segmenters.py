"""Segmenters: the mask of each entity by a model that is told its noun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from transformers import (
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    Sam2Model,
    Sam3Model,
    ViTImageProcessorPil,
)

from kgcli.construction.crops import cut_out
from kgcli.construction.models import load_model, load_part
from kgcli.construction.stage import Draft, Options, Place

Mask = NDArray[np.bool_]


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


class ClipSegOptions(SegmenterOptions):
    """CLIPSeg; the threshold is the published script's."""

    model: str = "CIDAS/clipseg-rd64-refined"  # folder or Hub id
    threshold: float = Field(default=0.3, gt=0, lt=1)  # of the probability of a pixel


class ClipSeg(Segmenter):
    """Masks of CLIPSeg, as published.

    Source: Image Segmentation Using Text and Image Prompts (arXiv:2112.10003).
    """

    options_type = ClipSegOptions

    def __init__(self, options: ClipSegOptions, place: Place) -> None:
        super().__init__(options, place)
        folder = place.folders[options.model]
        # Pillow's resize: torchvision's differs between its versions.
        pixels = load_part(ViTImageProcessorPil.from_pretrained, folder)
        self.processor = CLIPSegProcessor(pixels, load_part(CLIPTokenizer.from_pretrained, folder))
        self.model = load_model(CLIPSegForImageSegmentation.from_pretrained, folder, place.device, kinds=("clipseg",))

    @torch.inference_mode()
    def masks(self, image: Image.Image, nouns: list[str]) -> list[Mask | None]:
        """Return the pixels above the threshold, noun by noun."""
        found: list[Mask | None] = []
        for noun in nouns:
            inputs = self.processor(text=[noun], images=[image], return_tensors="pt", padding=True).to(self.device)
            logits = self.model(**inputs).logits
            resized = torch.nn.functional.interpolate(
                logits.reshape(1, 1, *logits.shape[-2:]).float(), size=(image.height, image.width), mode="bilinear"
            )
            found.append((resized[0, 0].sigmoid() > self.options.threshold).cpu().numpy())
        return found


class GroundedSamOptions(SegmenterOptions):
    """Grounding DINO's box of a noun, and SAM 2's mask in it."""

    detector: str = "IDEA-Research/grounding-dino-base"  # folder or Hub id; or OWLv2 ...
    model: str = "facebook/sam2.1-hiera-large"  # folder or Hub id of SAM 2
    threshold: float = Field(default=0.3, ge=0, lt=1)  # of the score of a box


class GroundedSam(Segmenter):
    """Masks of SAM 2 in the best box of a text-prompted detector.

    Source: Grounded SAM (arXiv:2401.14159), SAM 2 (arXiv:2408.00714).
    """

    options_type = GroundedSamOptions

    def __init__(self, options: GroundedSamOptions, place: Place) -> None:
        super().__init__(options, place)
        detector, sam = place.folders[options.detector], place.folders[options.model]
        self.processor = load_part(AutoProcessor.from_pretrained, detector)
        self.detector = load_model(AutoModelForZeroShotObjectDetection.from_pretrained, detector, place.device)
        self.sam_processor = load_part(AutoProcessor.from_pretrained, sam)
        self.sam = load_model(Sam2Model.from_pretrained, sam, place.device, kinds=("sam2", "sam2_video"))

    @torch.inference_mode()
    def masks(self, image: Image.Image, nouns: list[str]) -> list[Mask | None]:
        """Return the mask in the best box of each noun."""
        boxes = [self._box(image, noun) for noun in nouns]
        return [None if box is None else self._mask(image, box) for box in boxes]

    def _box(self, image: Image.Image, noun: str) -> list[float] | None:
        inputs = self.processor(images=image, text=[[noun.lower()]], return_tensors="pt").to(self.device)
        outputs = self.detector(**inputs)
        settings = {"threshold": self.options.threshold, "target_sizes": [(image.height, image.width)]}
        found = self.processor.post_process_grounded_object_detection(outputs, **settings)[0]
        if not len(found["scores"]):
            return None
        best = found["boxes"][int(found["scores"].argmax())].tolist()
        left, top, right, bottom = (max(0.0, value) for value in best)
        box = [left, top, min(right, float(image.width)), min(bottom, float(image.height))]
        return box if box[2] > box[0] and box[3] > box[1] else None

    def _mask(self, image: Image.Image, box: list[float]) -> Mask:
        inputs = self.sam_processor(images=image, input_boxes=[[box]], return_tensors="pt").to(self.device)
        outputs = self.sam(**inputs, multimask_output=False)
        masks = self.sam_processor.post_process_masks(outputs.pred_masks.cpu(), inputs["original_sizes"].cpu())
        return np.asarray(masks[0].reshape(-1, image.height, image.width)[0].numpy(), bool)


class Sam3Options(SegmenterOptions):
    """SAM 3."""

    model: str = "facebook/sam3"  # folder or Hub id
    threshold: float = Field(default=0.5, ge=0, lt=1)  # of the score of an instance
    mask_threshold: float = Field(default=0.5, gt=0, lt=1)  # of the probability of a pixel


class Sam3(Segmenter):
    """Masks of SAM 3: the best instance of a noun.

    Source: SAM 3: Segment Anything with Concepts (arXiv:2511.16719).
    """

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
        inputs = self.processor(images=image, text=noun, return_tensors="pt").to(self.device)
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
