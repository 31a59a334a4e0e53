"""Captioners: the given caption, or a model that looks at the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from transformers import AutoModelForImageTextToText, AutoProcessor

from kgcli.construction.models import load_model, load_part
from kgcli.construction.stage import Draft, Options, Place


class ModelCaptionerOptions(Options):
    """A captioning model."""

    model: str = "Salesforce/blip2-opt-2.7b"  # folder or Hub id; BLIP-2 as published, or any image-text-to-text model
    prompt: str = ""  # what the model is asked; BLIP-2 needs nothing
    max_new_tokens: int = Field(default=30, ge=1)
    keep_given: bool = False  # caption only the images that have none


class ModelCaptioner:
    """Captions by any AutoModelForImageTextToText, one image at a time, the likeliest words."""

    options_type = ModelCaptionerOptions

    def __init__(self, options: ModelCaptionerOptions, place: Place) -> None:
        folder = place.folders[options.model]
        self.options, self.device = options, place.device
        self.processor = load_part(AutoProcessor.from_pretrained, folder)
        self.model = load_model(AutoModelForImageTextToText.from_pretrained, folder, place.device)

    def apply(self, drafts: Sequence[Draft]) -> None:
        """Caption each image."""
        for draft in drafts:
            if not (self.options.keep_given and draft.caption):
                draft.caption = self._caption(draft)
            if not draft.caption:
                draft.drop("no caption")

    @torch.inference_mode()
    def _caption(self, draft: Draft) -> str:
        inputs = self._inputs(draft).to(self.device)
        ids = self.model.generate(**inputs, max_new_tokens=self.options.max_new_tokens, do_sample=False)
        # Models that read the prompt as text repeat it; those that read it in another part do not.
        given = inputs["input_ids"][0] if "input_ids" in inputs else None
        new = ids[0, len(given) :] if given is not None and torch.equal(ids[0, : len(given)], given) else ids[0]
        return " ".join(self.processor.batch_decode(new[None], skip_special_tokens=True)[0].split())

    def _inputs(self, draft: Draft) -> Any:
        if not getattr(self.processor, "chat_template", None):
            return self.processor(images=draft.image, text=self.options.prompt or None, return_tensors="pt")
        asked = {"type": "text", "text": self.options.prompt or "Describe this image in one short sentence."}
        message = {"role": "user", "content": [{"type": "image", "image": draft.image}, asked]}
        return self.processor.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
