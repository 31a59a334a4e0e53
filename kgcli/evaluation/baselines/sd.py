"""Stable Diffusion as a method: the decoder with its own text encoder, from the words alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from kgcli.errors import MissingError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.kosmosg import KosmosG
from kgcli.evaluation.run.folder import Item

if TYPE_CHECKING:
    from kgcli.evaluation.benchmarks.skills_methods import BasePainter


class StableDiffusion(KosmosG):
    """Draws the scored text, class noun and all; pictures in the prompt are not seen."""

    name = "sd"

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        self._text: BasePainter | None = None
        decoder = Path(self.folder.decoder)
        if decoder.exists() and not (decoder / "text_encoder" / "config.json").is_file():
            raise MissingError(
                f"the decoder {decoder} has no text_encoder/, which --method sd draws with; give --decoder with a "
                "whole diffusers folder"
            )

    def facts(self) -> dict[str, Any]:
        """As of the model, but for the part that reads prompts, which has no say."""
        facts = super().facts()
        return {name: value for name, value in facts.items() if name not in ("model", "model_sha256")}

    def check(self, items: Sequence[Item]) -> None:
        """Any text will do: one too long is cut, as Stable Diffusion does."""

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """One batch; each text is encoded alone."""
        import torch

        if self._text is None:
            from kgcli.evaluation.benchmarks.skills_methods import BasePainter

            self._text = BasePainter(self.loaded(), local_files_only=self.options.offline)
        rows = {text: self._text.encode([text]) for text in {self.negative, *(item.scored_text for item in items)}}
        embeds = torch.cat([rows[item.scored_text] for item in items])
        return self.draw_embeds(embeds, rows[self.negative].expand(len(items), -1, -1), items)
