"""Stable Diffusion as a method: the decoder with its own text encoder, from the text alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from kgcli.errors import MissingError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.kosmosg import KosmosG
from kgcli.evaluation.plan import Item
from kgcli.weights.folder import ModelFolder

if TYPE_CHECKING:
    from torch import Tensor


class StableDiffusion(KosmosG):
    """Generates from the scored text, class noun and all; images in the prompt are not seen."""

    name = "sd"

    def __init__(self, options: MethodOptions, folder: ModelFolder | None = None) -> None:
        super().__init__(options, folder)
        if Path(self.folder.decoder).exists() and not has_text_encoder(self.folder):
            raise MissingError(
                f"the decoder {self.folder.decoder} has no text_encoder/, which --method sd needs; give "
                "--decoder with a whole diffusers folder"
            )

    def facts(self) -> dict[str, Any]:
        """Return the fingerprint without the multimodal encoder, which is not used."""
        facts = super().facts()
        return {name: value for name, value in facts.items() if name not in ("model", "model_sha256")}

    def check(self, items: Sequence[Item]) -> None:
        """Accept any text: a long one is truncated, as in Stable Diffusion."""

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """Generate one batch; each text is encoded alone."""
        import torch

        rows = {text: self.encode([text]) for text in {self.negative, *(item.scored_text for item in items)}}
        embeds = torch.cat([rows[item.scored_text] for item in items])
        return self.denoise_embeds(embeds, rows[self.negative].expand(len(items), -1, -1), items)

    def encode(self, captions: list[str]) -> Tensor:
        """Encode captions to conditioning, (captions, tokens, width)."""
        import torch

        tokenizer, encoder = self._text_encoder
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            hidden: Tensor = encoder(tokens.to(encoder.device)).last_hidden_state
        return hidden

    @cached_property
    def _text_encoder(self) -> tuple[Any, Any]:
        """Tokenizer and text encoder of the decoder."""
        from transformers import CLIPTextModel, CLIPTokenizer

        where, fetch = self.folder.decoder, {"local_files_only": self.options.offline}
        tokenizer = CLIPTokenizer.from_pretrained(where, subfolder="tokenizer", **fetch)
        encoder = CLIPTextModel.from_pretrained(where, subfolder="text_encoder", **fetch)
        return tokenizer, encoder.to(self.loaded().pipeline.device).eval()


def has_text_encoder(folder: ModelFolder) -> bool:
    """Return whether the decoder is a folder with a text encoder."""
    return (Path(folder.decoder) / "text_encoder" / "config.json").is_file()
