"""Batches of tensors, and their collation from samples."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kgcli.data.images import to_vae_pixels, to_vision_pixels
from kgcli.data.pool import Pool
from kgcli.data.prompt import Sequence, encode, pad_sequences
from kgcli.data.sample import Sample
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import PromptError


@dataclass(frozen=True)
class Batch:
    """Tensors of one step; a stage names the fields it needs, the others stay None.

    Shape letters: B samples, T tokens, N images of the whole batch, S pixels, L CLIP tokens, C H W latent sizes.
    """

    tokens: Tensor | None = None  # (B, T) token ids, right-padded
    token_mask: Tensor | None = None  # (B, T) True = a real token
    image_mask: Tensor | None = None  # (B, T) True = a slot of an image
    images: Tensor | None = None  # (N, 3, S, S) CLIP-normalised, in reading order
    clip_tokens: Tensor | None = None  # (B, L) ids of the caption for a CLIP text encoder
    targets: Tensor | None = None  # (B, 3, S, S) the images to be generated, in [-1, 1]
    moments: Tensor | None = None  # (B, 2C, H, W) their VAE mean and log variance
    subject: Tensor | None = None  # (B, H, W) how much of each latent place a subject covers, in [0, 1]
    views: Tensor | None = None  # (B, V, 3, S, S) uint8: images of a sample, as many as the stage's collator gives
    maps: Tensor | None = None  # (B, 3, S, S) what a ControlNet follows to the target, in [0, 1]
    labels: Tensor | None = (
        None  # (B, heads) class labels of the whole image and its subject, for a recogniser of the nano world
    )
    numbers: tuple[int, ...] = ()  # B sample numbers of the endless stream: what the randomness of a step depends on
    num_images: tuple[int, ...] = ()  # B numbers of a sample's `images`; empty: one each

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in self.fields().items()}
        return dataclasses.replace(self, **moved)

    def split(self, num: int) -> list[Batch]:
        """Return `num` equal parts of the batch, in order; each keeps the padding of the whole."""
        if num == 1:
            return [self]
        size = len(self.numbers) // num
        return [self._rows(slice(first, first + size)) for first in range(0, num * size, size)]

    def padded(self, length: int, pad: int) -> Batch:
        """Return the batch with sequences of `length` tokens, the added ones `pad`."""
        assert self.tokens is not None and self.token_mask is not None and self.image_mask is not None
        more = (0, length - self.tokens.shape[1])
        return dataclasses.replace(
            self,
            tokens=F.pad(self.tokens, more, value=pad),
            token_mask=F.pad(self.token_mask, more),
            image_mask=F.pad(self.image_mask, more),
        )

    def _rows(self, rows: slice) -> Batch:
        fields: dict[str, Any] = {name: value[rows] for name, value in self.fields().items() if name != "images"}
        if self.images is not None:
            ends = np.cumsum([0, *(self.num_images or [1] * len(self.numbers))])
            fields["images"] = self.images[ends[rows.start] : ends[rows.stop]]
        return Batch(**fields, numbers=self.numbers[rows], num_images=self.num_images[rows])

    def fields(self) -> dict[str, Tensor]:
        """Return the fields that are not None."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def sample_fields(needs: frozenset[str]) -> frozenset[str]:
    """Return the fields of every sample that a batch with the fields `needs` is made from."""
    made_from = {
        "tokens": "fragments",
        "clip_tokens": "caption",
        "targets": "target",
        "moments": "target",
        "views": "images",
        "labels": "truth",
    }
    found = {made_from[name] for name in needs if name in made_from}
    # Beside tokens there are as many images as the fragments have places for: none, often.
    return frozenset(found | ({"images"} if "images" in needs and "tokens" not in needs else set()))


@dataclass
class Collator:
    """Collates samples to a `Batch`, with the tokenizers and sizes of the model."""

    needs: frozenset[str]
    image_size: int  # pixels, of targets
    vision_size: int  # pixels, of what the vision tower reads
    vision_fit: str = "crop"  # how those become square
    num_slots: int = 0
    tokenizer: Tokenizer | None = None
    clip_tokenizer: Any = None
    pool: Pool | None = None
    max_tokens: int | None = None  # of a sequence; a longer one is an error
    eos: bool = False  # end sequences in </s>, for language modelling

    def __call__(self, samples: list[Sample], rows: list[int]) -> Batch:
        """Return the batch of samples; `rows` are their sources' rows, by which cached moments are found."""
        fields: dict[str, Any] = {}
        if "tokens" in self.needs:
            fields |= self._tokens(samples)
        if "images" in self.needs:
            given = [image for sample in samples for image in sample.images]
            images = [to_vision_pixels(image, self.vision_size, self.vision_fit) for image in given]
            empty = np.zeros((0, 3, self.vision_size, self.vision_size), np.float32)
            fields["images"] = torch.from_numpy(np.stack(images) if images else empty)
            fields["num_images"] = tuple(len(sample.images) for sample in samples)
        if "clip_tokens" in self.needs:
            captions = [sample.caption for sample in samples]
            fields["clip_tokens"] = self.clip_tokenizer(
                captions, padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
        if "targets" in self.needs:
            targets = [to_vae_pixels(sample.render(self.image_size).image, self.image_size) for sample in samples]
            fields["targets"] = torch.from_numpy(np.stack(targets))
        if "moments" in self.needs:
            assert self.pool is not None
            fields |= self.pool.rows(rows)
        return Batch(**fields)

    def length(self, sample: Sample) -> int:
        """Return the number of tokens of a sample in the MLLM."""
        if self.tokenizer is None:
            return 0
        return len(self._encode(sample).token_ids)

    def _encode(self, sample: Sample) -> Sequence:
        """Return the token ids of a sample.

        Raises: PromptError for one longer than the model takes.
        """
        assert self.tokenizer is not None
        sequence = encode(sample.fragments, self.tokenizer, self.num_slots, eos=self.eos)
        if self.max_tokens and len(sequence.token_ids) > self.max_tokens:
            raise PromptError(
                f"{sample.origin or 'a sample'} is {len(sequence.token_ids)} tokens long (an image counts as several); "
                f"the model takes at most {self.max_tokens}"
            )
        return sequence

    def _tokens(self, samples: list[Sample]) -> dict[str, Tensor]:
        assert self.tokenizer is not None
        rows = [self._encode(sample) for sample in samples]
        tokens, token_mask, image_mask = pad_sequences(rows, self.tokenizer.special_ids.pad)
        return {"tokens": tokens, "token_mask": token_mask, "image_mask": image_mask}
