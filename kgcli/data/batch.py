"""From world samples to tensors: one deterministic batch per step, the same however many processes share it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from kgcli.config import Recipe
from kgcli.data.images import to_vae_pixels, to_vision_pixels
from kgcli.data.prompt import encode
from kgcli.data.sources.world import Sample, draw
from kgcli.data.tokenizer import Tokenizer
from kgcli.world.spec import Spec, render

EVALUATION_STEP = 1 << 40  # batches from here on are never trained on


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
    targets: Tensor | None = None  # (B, 3, S, S) the pictures to be made, in [-1, 1]
    moments: Tensor | None = None  # (B, 2C, H, W) their VAE mean and log variance
    subject: Tensor | None = None  # (B, H, W) how much of each latent place a subject covers, in [0, 1]
    views: Tensor | None = None  # (B, V, 3, S, S) uint8: pictures of a sample, as many as the stage's collator gives
    maps: Tensor | None = None  # (B, 3, S, S) what a ControlNet follows to the target, in [0, 1]
    labels: Tensor | None = None  # (B, heads) what the judges should say of the whole picture
    numbers: tuple[int, ...] = ()  # B sample numbers of the endless stream: what the randomness of a step depends on

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self.fields().items()}
        return dataclasses.replace(self, **moved)

    def fields(self) -> dict[str, Tensor]:
        """The fields that are there."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@dataclass
class Collator:
    """Makes a `Batch` of samples; holds the tokenizers and sizes of the model that will read it."""

    needs: frozenset[str]
    image_size: int  # pixels, of targets
    vision_size: int  # pixels, of what the vision tower reads
    vision_fit: str = "crop"  # how those become square
    num_slots: int = 0
    tokenizer: Tokenizer | None = None
    clip_tokenizer: Any = None
    pool: Pool | None = None
    eos: bool = False  # end sequences in </s>, for language modelling

    def __call__(self, samples: list[Sample], indices: list[int]) -> Batch:
        fields: dict[str, Tensor] = {}
        if "tokens" in self.needs:
            fields |= self._tokens(samples)
        if "images" in self.needs:
            given = [image for sample in samples for image in sample.images]
            images = [to_vision_pixels(image, self.vision_size, self.vision_fit) for image in given]
            empty = np.zeros((0, 3, self.vision_size, self.vision_size), np.float32)
            fields["images"] = torch.from_numpy(np.stack(images) if images else empty)
        if "clip_tokens" in self.needs:
            captions = [sample.caption for sample in samples]
            fields["clip_tokens"] = self.clip_tokenizer(
                captions, padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
        if "targets" in self.needs:
            pictures = [render(_spec(sample), self.image_size).picture for sample in samples]
            fields["targets"] = torch.from_numpy(np.stack([to_vae_pixels(p, self.image_size) for p in pictures]))
        if "moments" in self.needs:
            assert self.pool is not None
            fields |= self.pool.rows(indices)
        return Batch(**fields)

    def length(self, sample: Sample) -> int:
        """How many tokens the multimodal model reads of a sample."""
        if self.tokenizer is None:
            return 0
        return len(encode(sample.fragments, self.tokenizer, self.num_slots, eos=self.eos).token_ids)

    def _tokens(self, samples: list[Sample]) -> dict[str, Tensor]:
        assert self.tokenizer is not None
        rows = [encode(sample.fragments, self.tokenizer, self.num_slots, eos=self.eos) for sample in samples]
        pad = self.tokenizer.special_ids.pad
        tokens = pad_sequence([torch.tensor(row.token_ids) for row in rows], batch_first=True, padding_value=pad)
        slots = pad_sequence([torch.tensor(row.image_mask) for row in rows], batch_first=True)
        return {"tokens": tokens, "token_mask": tokens != pad, "image_mask": slots}


def draw_sample(recipe: Recipe, index: int) -> Sample:
    """The sample at `index` of the endless stream that a recipe trains on."""
    data = recipe.data
    return draw(
        data.kinds,
        data.seed,
        index,
        recipe.image_size,
        data.pool,
        drop_entity_text=data.drop_entity_text,
        keep_background=data.keep_background,
    )


class Batches(Dataset[Batch]):
    """The batch of each step: indices step * B to (step + 1) * B, of which this process takes its share.

    With `data.bucket` above 1 that many steps share their samples: each takes those of like length, in random order.
    """

    def __init__(self, recipe: Recipe, collator: Collator, rank: int = 0, num_ranks: int = 1) -> None:
        self.recipe = recipe
        self.collator = collator
        self.rank = rank
        self.num_ranks = num_ranks
        self._kept: dict[int, Sample] = {}
        self._bucket: tuple[int, list[list[int]]] = (-1, [])  # its first step, and the indices of each of its steps
        self._ahead: dict[int, Sample] = {}  # of the bucket: drawn for their lengths, until their step takes them

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> Batch:
        data = self.recipe.data
        indices = self.indices(step)
        samples = [self._sample(i) for i in indices]
        batch = self.collator(samples, [i % data.pool if data.pool else i for i in indices])
        return dataclasses.replace(batch, numbers=tuple(indices))

    def indices(self, step: int) -> list[int]:
        """Which samples of the endless stream this process takes in a step."""
        num_steps = self.recipe.data.bucket
        if num_steps == 1:
            return self._share(step)
        first = step - step % num_steps
        if self._bucket[0] != first:
            self._bucket = (first, self._deal(first, num_steps))
        return self._bucket[1][step - first]

    def _share(self, step: int) -> list[int]:
        first = step * self.recipe.data.batch_size
        return list(range(first + self.rank, first + self.recipe.data.batch_size, self.num_ranks))

    def _deal(self, first: int, num_steps: int) -> list[list[int]]:
        """The samples of a bucket by length, shortest first, cut into its steps, and those in random order."""
        indices = [index for step in range(first, first + num_steps) for index in self._share(step)]
        self._ahead = {index: self._sample(index) for index in indices}
        indices.sort(key=lambda index: self.collator.length(self._ahead[index]))
        size = len(indices) // num_steps
        # The same order on every process, so that none waits for another's longer batch.
        order = np.random.default_rng([7, self.recipe.data.seed, first]).permutation(num_steps)
        return [indices[place * size : (place + 1) * size] for place in order]

    def _sample(self, index: int) -> Sample:
        if index in self._ahead:
            return self._ahead.pop(index)
        data = self.recipe.data
        if not (data.keep and data.pool):
            return draw_sample(self.recipe, index)
        place = index % data.pool
        if place not in self._kept:
            self._kept[place] = draw_sample(self.recipe, place)
        return self._kept[place]


class Pool:
    """VAE moments and subject masks of a finite pool of pictures, on disk, encoded once.

    Exact, because resizing a target is deterministic; worth it, because encoding costs a fifth of a U-Net step.
    """

    def __init__(self, folder: Path) -> None:
        self.moments = np.load(folder / "moments.npy", mmap_mode="r")
        self.subject = np.load(folder / "subject.npy", mmap_mode="r")

    def rows(self, indices: list[int]) -> dict[str, Tensor]:
        """Moments and masks of the pictures at `indices`."""
        return {
            "moments": torch.from_numpy(self.moments[indices].astype(np.float32)),
            "subject": torch.from_numpy(self.subject[indices].astype(np.float32) / 255.0),
        }

    @classmethod
    def create(cls, folder: Path, num: int, moments_shape: tuple[int, ...]) -> tuple[np.memmap, np.memmap]:
        """Empty files to be filled under temporary names; `finish` makes them a pool."""
        folder.mkdir(parents=True, exist_ok=True)
        moments = open_memmap(folder / "moments.npy.partial", "w+", np.float16, (num, *moments_shape))
        subject = open_memmap(folder / "subject.npy.partial", "w+", np.uint8, (num, *moments_shape[1:]))
        return moments, subject

    @classmethod
    def finish(cls, folder: Path) -> Pool:
        """Give filled files their names; moments last, whose presence says the pool is whole."""
        for name in ("subject.npy", "moments.npy"):
            (folder / (name + ".partial")).replace(folder / name)
        return cls(folder)


class PoolPictures(Dataset[tuple[Tensor, Tensor]]):
    """The pictures of a recipe's pool, as VAE input and subject mask."""

    def __init__(self, recipe: Recipe, latent_size: int) -> None:
        assert recipe.data.pool is not None
        self.recipe = recipe
        self.latent_size = latent_size

    def __len__(self) -> int:
        return self.recipe.data.pool or 0

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        recipe = self.recipe
        spec = _spec(draw_sample(recipe, index))
        rendered = render(spec, recipe.image_size)
        masks = [np.asarray(mask.resize((self.latent_size, self.latent_size))) for mask in rendered.masks]
        pixels = torch.from_numpy(to_vae_pixels(rendered.picture, recipe.image_size))
        return pixels, torch.from_numpy(np.max(masks, axis=0))


def _spec(sample: Sample) -> Spec:
    assert sample.spec is not None, "this kind of sample has no picture to be made"
    return sample.spec
