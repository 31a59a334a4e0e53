"""The stage that trains the recognisers of evaluation. No generator is trained with them.

Shape letters: B samples, V views of each, S pixels, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from kgcli.config import Strict
from kgcli.data.batch import Batch, Collator
from kgcli.data.pool import Pool
from kgcli.data.sample import Sample
from kgcli.data.sources.world_sample import Truth
from kgcli.model.nano_recognisers import HEADS, IGNORED, Recognisers, around, label_row
from kgcli.model.randomness import StepRandom
from kgcli.training.stages.base import Setup, Stage, Whole, alone
from kgcli.world.view import VIEW_SIZE, view


class RecogniserCollator(Collator):
    """Three views of each instance, and the labels of it and of the whole image."""

    def __call__(self, samples: Iterable[Sample], rows: list[int]) -> Batch:
        views, labels = [], []
        for sample in samples:
            truth: Truth = sample.truth
            whole, reference = sample.images
            part = around(whole, truth.subject, len(truth.spec.subjects))
            views.append(stack_views([whole, part, reference]))
            labels.append(label_row(truth.spec, truth.subject))
        pixels = torch.from_numpy(np.stack(views)).permute(0, 1, 4, 2, 3)
        return Batch(views=pixels, labels=torch.tensor(labels))


class RecogniserOptions(Strict):
    """blur: largest fraction of blur. noise: largest standard deviation, of a range of 2."""

    blur: float = 1.0
    noise: float = 0.08


class RecogniserStage(Stage):
    """Labels by cross-entropy and identity by contrast, on images degraded like a decoder's.

    With `init_from.judges`, a folder of earlier recognisers, it continues from those.
    """

    needs = frozenset({"views", "labels"})
    kinds = frozenset({"judged"})
    Options = RecogniserOptions
    options: RecogniserOptions
    trains = ("judges.", "log_scale")
    contrasts = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if "judges" in setup.init_from:
            self.judges = Recognisers.load(self.setup.source("judges"))
        else:
            self.judges = Recognisers(**setup.parts.get("judges", {}))
        self.judges.to(memory_format=torch.channels_last)
        self.log_scale = nn.Parameter(torch.tensor(2.3))  # of the similarities, starts at 10

    def collator(self, pool: Pool | None) -> Collator:
        return RecogniserCollator(self.needs, self.setup.image_size, VIEW_SIZE)

    def forward(self, batch: Batch, random: StepRandom, whole: Whole = alone) -> dict[str, Tensor]:
        assert batch.views is not None and batch.labels is not None
        whole_B3SS, part_B3SS, reference_B3SS = (self._degraded(view, random) for view in batch.views.unbind(1))
        scene = self.judges.scene(whole_B3SS)
        embeddings_BE, subject = self.judges.subject(torch.cat([part_B3SS, reference_B3SS]))
        losses = {}
        for column, name in enumerate(HEADS):
            labels_B = batch.labels[:, column]
            losses[name] = (
                _cross_entropy(scene[name], labels_B)
                if name in scene
                else _cross_entropy(subject[name], labels_B.repeat(2))
            )
        part_BE, reference_BE = whole(*embeddings_BE.chunk(2))
        logits_BB = part_BE @ reference_BE.T * self.log_scale.clamp(max=4.0).exp()
        targets_B = torch.arange(len(logits_BB), device=logits_BB.device)
        match = 0.5 * (F.cross_entropy(logits_BB, targets_B) + F.cross_entropy(logits_BB.T, targets_B))
        return {**losses, "match": match}

    def counts(self, batch: Batch) -> dict[str, int]:
        assert batch.labels is not None
        return dict(zip(HEADS, (batch.labels != IGNORED).sum(0).tolist(), strict=True))

    def export(self, folder: Path) -> None:
        self.judges.save(folder / "judges", self.setup.image_size)

    def _degraded(self, view_B3SS: Tensor, random: StepRandom) -> Tensor:
        return degrade(view_B3SS, random, blur=self.options.blur, noise=self.options.noise)


def stack_views(images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """Return images as evaluation sees outputs: (V, VIEW_SIZE, VIEW_SIZE, 3)."""
    return np.stack([np.asarray(view(image)) for image in images])


def degrade(view_B3SS: Tensor, random: StepRandom, *, blur: float, noise: float) -> Tensor:
    """Return pixels in [-1, 1] of uint8 images, each with random blur, noise, contrast and brightness.

    Args:
        blur: largest fraction of blur
        noise: largest standard deviation, of a range of 2
    """
    pixels_B3SS = view_B3SS.float().contiguous(memory_format=torch.channels_last) / 127.5 - 1.0
    draws_4B111 = random.uniform(4, 1, 1, 1).transpose(0, 1).to(pixels_B3SS.device)
    blurred, grain, contrast, light = draws_4B111
    smooth_B3SS = F.avg_pool2d(pixels_B3SS, 3, 1, 1, count_include_pad=False)
    pixels_B3SS = pixels_B3SS.lerp(smooth_B3SS, blur * blurred)
    noise_3SS = torch.randn(pixels_B3SS.shape[1:], generator=random.shared).to(pixels_B3SS.device)  # one for all: cheap
    pixels_B3SS = pixels_B3SS + noise * grain * noise_3SS
    return pixels_B3SS * (0.9 + 0.2 * contrast) + 0.1 * (light - 0.5)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over the rows that have a label; zero if none has."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)
