"""Grounded SAM: the box of a text-prompted detector, and SAM 2's mask in it."""

from __future__ import annotations

from PIL import Image
from pydantic import Field
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from kgcli.construction.models import load_model, load_part, process
from kgcli.construction.segmenters.base import Box, BoxOptions, BoxSegmenter, box_inside
from kgcli.construction.stage import Place


class GroundedSamOptions(BoxOptions):
    """Grounding DINO's or OWLv2's box of a noun, and SAM 2's mask in it."""

    detector: str = "IDEA-Research/grounding-dino-base"  # folder or Hub id; or google/owlv2-base-patch16-ensemble ...
    threshold: float = Field(default=0.3, ge=0, lt=1)  # of the score of a box


class GroundedSam(BoxSegmenter):
    """Masks of SAM 2 in the best box of a text-prompted detector.

    Source: Grounded SAM (arXiv:2401.14159), Grounding DINO (arXiv:2303.05499), OWLv2 (arXiv:2306.09683).
    """

    options_type = GroundedSamOptions

    def __init__(self, options: GroundedSamOptions, place: Place) -> None:
        super().__init__(options, place)
        folder = place.folders[options.detector]
        self.processor = load_part(AutoProcessor.from_pretrained, folder)
        self.detector = load_model(AutoModelForZeroShotObjectDetection.from_pretrained, folder, place.device)

    def box(self, image: Image.Image, noun: str) -> Box | None:
        """Return the box with the highest score."""
        inputs = process(self.processor, images=image, text=[[noun.lower()]]).to(self.device)
        outputs = self.detector(**inputs)
        settings = {"threshold": self.options.threshold, "target_sizes": [(image.height, image.width)]}
        found = self.processor.post_process_grounded_object_detection(outputs, **settings)[0]
        if not len(found["scores"]):
            return None
        return box_inside(found["boxes"][int(found["scores"].argmax())].tolist(), image)
