"""Vision-language models: an answer in words about one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from kgcli.construction.models import load_model, load_part, process


class VisionLanguageModel:
    """Any AutoModelForImageTextToText of a folder, one image at a time, the likeliest words."""

    def __init__(self, folder: str, device: str) -> None:
        self.device = device
        self.processor = load_part(AutoProcessor.from_pretrained, folder)
        self.model = load_model(AutoModelForImageTextToText.from_pretrained, folder, device)

    @property
    def kind(self) -> str:
        """The model type."""
        return str(self.model.config.model_type)

    @property
    def is_chat(self) -> bool:
        """True for a model that expects its prompt in the form of a conversation."""
        return bool(getattr(self.processor, "chat_template", None))

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the answers."""
        return self.processor.tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the model gives logits for."""
        return int(self.model.config.get_text_config().vocab_size)

    @torch.inference_mode()
    def answer(
        self, image: Image.Image, prompt: str, *, max_new_tokens: int, logits_processor: Sequence[Any] = ()
    ) -> str:
        """Return the answer to a prompt about an image, special tokens left out."""
        inputs = self._inputs(image, prompt).to(self.device)
        ids = self.model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, logits_processor=list(logits_processor)
        )
        # Models that read the prompt as text repeat it; those that read it in another part do not.
        given = inputs["input_ids"][0] if "input_ids" in inputs else None
        new = ids[0, len(given) :] if given is not None and torch.equal(ids[0, : len(given)], given) else ids[0]
        return str(self.processor.batch_decode(new[None], skip_special_tokens=True)[0])

    def _inputs(self, image: Image.Image, prompt: str) -> Any:
        if not self.is_chat:
            return process(self.processor, images=image, text=prompt or None)
        asked = {"type": "text", "text": prompt}
        message = {"role": "user", "content": [{"type": "image", "image": image}, asked]}
        wanted = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        return process(self.processor.apply_chat_template, conversation=[message], **wanted)
