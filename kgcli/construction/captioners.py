"""Captioners: the given caption, or a model that looks at the image."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from kgcli.construction.stage import Draft, Options, Place
from kgcli.construction.vlm import VisionLanguageModel

CHAT_PROMPT = "Describe this image in one short sentence."
OWN_PROMPTS = {"florence2": "<CAPTION>"}  # model type -> what it is asked by default


class ModelCaptionerOptions(Options):
    """A captioning model."""

    model: str = "Salesforce/blip2-opt-2.7b"  # folder or Hub id; BLIP-2 as published, or any image-text-to-text model
    prompt: str = ""  # what the model is asked; BLIP-2 needs nothing, Florence-2 has <CAPTION>, <DETAILED_CAPTION> ...
    max_new_tokens: int = Field(default=30, ge=1)
    keep_given: bool = False  # caption only the images that have none


class ModelCaptioner:
    """Captions by any AutoModelForImageTextToText, one image at a time, the likeliest words."""

    options_type = ModelCaptionerOptions

    def __init__(self, options: ModelCaptionerOptions, place: Place) -> None:
        self.options = options
        self.vlm = VisionLanguageModel(place.folders[options.model], place.device)
        default = CHAT_PROMPT if self.vlm.is_chat else OWN_PROMPTS.get(self.vlm.kind, "")
        self.prompt = options.prompt or default

    def apply(self, drafts: Sequence[Draft]) -> None:
        """Caption each image."""
        for draft in drafts:
            if not (self.options.keep_given and draft.caption):
                answer = self.vlm.answer(draft.image, self.prompt, max_new_tokens=self.options.max_new_tokens)
                draft.caption = " ".join(answer.split())
            if not draft.caption:
                draft.drop("no caption")
