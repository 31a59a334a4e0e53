"""Textual Inversion: one new word for a subject, learnt as a vector while all weights stay frozen.

Source: An Image is Worth One Word (arXiv:2208.01618).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kgcli.evaluation.baselines.decoder import TextDecoder
from kgcli.evaluation.baselines.per_subject import PerSubject
from kgcli.evaluation.baselines.words import name_subject
from kgcli.evaluation.plan import Item
from kgcli.model.randomness import StepRandom

WEIGHTS = "learned_embeds.safetensors"  # the name that `load_textual_inversion` looks for
TOKEN = "<subject>"
# The authors' templates, of which the small decoder's captions know three.
TEMPLATES = {
    "sd": (
        "a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}",
        "a photo of a clean {}", "a photo of a dirty {}", "a dark photo of the {}", "a photo of my {}",
        "a photo of the cool {}", "a close-up photo of a {}", "a bright photo of the {}", "a cropped photo of a {}",
        "a photo of the {}", "a good photo of the {}", "a photo of one {}", "a close-up photo of the {}",
        "a rendition of the {}", "a photo of the clean {}", "a rendition of a {}", "a photo of a nice {}",
        "a good photo of a {}", "a photo of the nice {}", "a photo of the small {}", "a photo of the weird {}",
        "a photo of the large {}", "a photo of a cool {}", "a photo of a small {}",
    ),
    "small": ("a {}", "a picture of a {}", "a photo of a {}"),
}  # fmt: skip


class TextualInversion(PerSubject):
    """Learn a word for a subject. Settings: steps, batch, lr, references, init, mirror, seed, save_every."""

    name = "textual-inversion"
    # sd: steps, mirror images and the base rate of the paper; its rate is scaled up for another text encoder, whose
    # vectors are longer. `init` is the word the vector starts from, "" for the class noun.
    defaults = {
        "sd": {
            "steps": 5000, "batch": 4, "lr": 5e-3, "references": "input", "init": "", "mirror": True, "seed": 0,
            "save_every": 500,
        },
        "small": {
            "steps": 100, "batch": 4, "lr": 2e-2, "references": "input", "init": "", "mirror": True, "seed": 0,
            "save_every": 50,
        },
    }  # fmt: skip

    def attach(self, decoder: TextDecoder) -> None:
        """Add the word to the tokenizer, and its vector beside the table of all others."""
        decoder.tokenizer.add_tokens(TOKEN)
        self.table = TableWithRow(
            decoder.text_encoder.get_input_embeddings(), decoder.tokenizer.convert_tokens_to_ids(TOKEN)
        )
        decoder.text_encoder.set_input_embeddings(self.table)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the new vector alone."""
        return {"row": self.table.row}

    def begin(self, noun: str, images: list[Path], shared: Path) -> Callable[[StepRandom], Tensor]:
        """Start from the mean vector of the class noun's tokens."""
        ids = self.decoder.tokenizer(self.settings["init"] or noun, add_special_tokens=False).input_ids
        with torch.no_grad():
            self.table.row.copy_(self.table.table.weight[ids].mean(0))
        return partial(self._loss, self.decoder.moments(images, mirrored=self.settings["mirror"]))

    def _loss(self, moments: tuple[Tensor, Tensor], random: StepRandom) -> Tensor:
        templates = TEMPLATES[self.folder.scale]
        captions = [templates[index].format(TOKEN) for index in random.integers(len(templates)).tolist()]
        return self.decoder.loss(moments, self.decoder.encode(captions), random)

    def write(self, folder: Path, subject: str) -> None:
        """Write a diffusers embeddings file for the word `<subject's name>`."""
        save_file({word_of(subject): self.table.row.detach().cpu()[None].contiguous()}, folder / WEIGHTS)

    def read(self, folder: Path) -> dict[str, Tensor]:
        """Load the vector of a diffusers embeddings file."""
        (vector,) = load_file(folder / WEIGHTS).values()
        return {"row": vector[0]}

    def words(self, item: Item) -> str:
        """Return the scored text with the new word in place of its class noun."""
        return name_subject(item, TOKEN)

    def facts(self) -> dict[str, Any]:
        """Return the shared fingerprint plus the number of templates."""
        return super().facts() | {"templates": len(TEMPLATES[self.folder.scale])}


class TableWithRow(nn.Module):
    """An embedding table and one row after its end, trainable while the table is frozen."""

    def __init__(self, table: nn.Embedding, row_id: int) -> None:
        super().__init__()
        self.table = table
        self.row_id = row_id
        self.row = nn.Parameter(torch.zeros_like(table.weight[0]), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The table's own weights."""
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Embed token ids to (..., d)."""
        ours = ids == self.row_id
        vectors = F.embedding(ids.masked_fill(ours, 0), self.table.weight)
        return torch.where(ours[..., None], self.row, vectors)


def word_of(subject: str) -> str:
    """Return the word under which a subject's vector is stored: `<backpack-dog>`."""
    return "<" + (re.sub(r"[^a-z0-9]+", "-", subject.lower()).strip("-") or "subject") + ">"
