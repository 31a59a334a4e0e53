"""Batches of tensors, and their collation from samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kgcli.data.hidden import HiddenStates, image_digest
from kgcli.data.images import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    normalised_values,
    to_square,
    to_uint8,
    to_vision_square,
    write_pixels,
)
from kgcli.data.pool import Pool
from kgcli.data.prompt import Sequence, encode, pad_sequences
from kgcli.data.sample import Fault, Fragments, Sample
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
    hidden: Tensor | None = None  # (B, L, D) cached states of a frozen MLLM, L >= T
    moments: Tensor | None = None  # (B, 2C, H, W) their VAE mean and log variance
    subject: Tensor | None = None  # (B, H, W) how much of each latent place a subject covers, in [0, 1]
    views: Tensor | None = None  # (B, V, 3, S, S) uint8: images of a sample, as many as the stage's collator gives
    maps: Tensor | None = None  # (B, 3, S, S) what a ControlNet follows to the target, in [0, 1]
    labels: Tensor | None = (
        None  # (B, heads) class labels of the whole image and its subject, for a recogniser of the nano world
    )
    numbers: tuple[int, ...] = ()  # B sample numbers of the endless stream: what the randomness of a step depends on
    num_images: tuple[int, ...] = ()  # B numbers of a sample's `images`; empty: one each
    faults: tuple[Fault, ...] = ()  # rows that could not be read, and that others stand for

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device, where uint8 images and targets are normalised."""
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in self.fields().items()}
        for name in _NORMALISED:
            if name in moved and moved[name].dtype == torch.uint8:
                moved[name] = normalised(name, moved[name])
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


_NORMALISED = {"images": (CLIP_MEAN, CLIP_STD), "targets": (HALF, HALF)}


def normalised(name: str, pixels_N3SS: Tensor) -> Tensor:
    """Return uint8 pixels as a field of a batch holds them, bit for bit what the published arithmetic gives."""
    table = torch.from_numpy(normalised_values(*_NORMALISED[name]).copy()).to(pixels_N3SS.device)
    return torch.stack([values[pixels_N3SS[:, channel].int()] for channel, values in enumerate(table)], dim=1)


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
class _BatchParts:
    """Pixels, tokens and words of a batch, gathered sample by sample."""

    targets_B3SS: NDArray[np.uint8]
    sequences: list[Sequence] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)  # (3, S, S) each, in reading order
    num_images: list[int] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)  # of the images of a sample, for cached hidden states


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
    hidden: HiddenStates | None = None
    max_tokens: int | None = None  # of a sequence; a longer one is an error
    eos: bool = False  # end sequences in </s>, for language modelling
    uint8: bool = False  # leave the normalisation of images and targets to the device: a quarter of the bytes
    # The last fragments and their tokens: a sample is checked, and then taken.
    _encoded: tuple[Fragments, Sequence] | None = field(default=None, init=False, repr=False, compare=False)

    def __call__(self, samples: Iterable[Sample], rows: list[int]) -> Batch:
        """Return the batch of samples, each taken once and kept no longer than its pixels and tokens are copied.

        Args:
            rows: of their sources, one of each sample, by which cached moments and states are found; samples that are
                read as they are taken may write theirs here
        """
        taken = self._take(samples, len(rows))
        fields: dict[str, Any] = {}
        if "tokens" in self.needs:
            assert self.tokenizer is not None
            padded = pad_sequences(taken.sequences, self.tokenizer.special_ids.pad)
            fields |= dict(zip(("tokens", "token_mask", "image_mask"), padded, strict=True))
        if "images" in self.needs and self.hidden is None:
            empty = np.zeros((0, 3, self.vision_size, self.vision_size), np.uint8)
            fields["images"] = self._pixels("images", np.stack(taken.images) if taken.images else empty)
            fields["num_images"] = tuple(taken.num_images)
        if self.hidden is not None:
            fields["hidden"] = self.hidden.rows(rows, fields["tokens"], taken.digests)
        if "clip_tokens" in self.needs:
            fields["clip_tokens"] = self.clip_tokenizer(
                taken.captions, padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
        if "targets" in self.needs:
            fields["targets"] = self._pixels("targets", taken.targets_B3SS)
        if "moments" in self.needs:
            assert self.pool is not None
            fields |= self.pool.rows(rows)
        return Batch(**fields)

    def _take(self, samples: Iterable[Sample], num: int) -> _BatchParts:
        """Return what a batch holds of `num` samples, each of which may go before the next is read."""
        side, num_taken = self.image_size, 0
        taken = _BatchParts(np.empty((num if "targets" in self.needs else 0, 3, side, side), np.uint8))
        for place, sample in enumerate(samples):  # a zip would keep the one before as well
            num_taken += 1
            if "tokens" in self.needs:
                taken.sequences.append(self.encode(sample))
            if "clip_tokens" in self.needs:
                taken.captions.append(sample.caption)
            if "targets" in self.needs:
                write_pixels(to_square(sample.render(side).image, side), taken.targets_B3SS[place])
            if "images" not in self.needs:
                continue
            squares = self.squares(sample)
            taken.num_images.append(len(squares))
            if self.hidden is None:
                taken.images += map(to_uint8, squares)
            else:
                taken.digests.append(image_digest(squares))
        if num_taken != num:  # the last targets would be whatever was in memory
            raise ValueError(f"there are {num_taken} samples of {num} rows")
        return taken

    def squares(self, sample: Sample) -> list[Image.Image]:
        """Return the images of a sample as the vision tower reads them."""
        return [to_vision_square(image, self.vision_size, self.vision_fit) for image in sample.images]

    def length(self, fragments: Fragments) -> int:
        """Return the number of tokens of a sample in the MLLM."""
        if self.tokenizer is None:
            return 0
        return len(encode(fragments, self.tokenizer, self.num_slots, eos=self.eos).token_ids)

    def check(self, sample: Sample) -> None:
        """See that the model can take a sample. Raises: PromptError for one that is too long."""
        if "tokens" in self.needs:
            self.encode(sample)

    def encode(self, sample: Sample) -> Sequence:
        """Return the token ids of a sample.

        Raises: PromptError for one longer than the model takes.
        """
        assert self.tokenizer is not None
        if self._encoded is None or self._encoded[0] is not sample.fragments:
            sequence = encode(sample.fragments, self.tokenizer, self.num_slots, eos=self.eos)
            self._encoded = sample.fragments, sequence
        sequence = self._encoded[1]
        if self.max_tokens and len(sequence.token_ids) > self.max_tokens:
            raise PromptError(
                f"{sample.origin or 'a sample'} is {len(sequence.token_ids)} tokens long (an image counts as several); "
                f"the model takes at most {self.max_tokens}"
            )
        return sequence

    def _pixels(self, name: str, pixels_N3SS: NDArray[np.uint8]) -> Tensor:
        """Return images as a field of the batch, normalised unless the device does it."""
        pixels = torch.from_numpy(pixels_N3SS)
        return pixels if self.uint8 else normalised(name, pixels)
