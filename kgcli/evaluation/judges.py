"""The judges: two small networks that say what a nano-world picture shows and whose picture it is.

They are trained on rendered pictures alone, on individuals no generator sees, and share nothing with any generator.

Shape letters: B pictures, C channels, X Y places, S pixels, E embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kgcli.data.world.spec import Spec
from kgcli.data.world.tables import ACCESSORIES, COLOURS, NOUNS, SCENES, STYLES
from kgcli.errors import IncompatibleError, MissingError

# What the classifier says of a picture, by head. None of the lists may be reordered: weights depend on it.
HEADS: dict[str, list[str]] = {
    "noun": list(NOUNS),  # of the one subject
    "left": list(NOUNS),  # of two subjects
    "right": list(NOUNS),
    "scene": [*SCENES, "blocks"],  # blocks: the place a style brings along
    "style": list(STYLES),
    "accessory": ["nothing", *ACCESSORIES],  # of the one subject
    "colour": list(COLOURS),  # of the one subject's body
    "count": ["1", "2"],
}
UNASKED = -100  # label of a head that has nothing to say of a picture
SIDES = ("left", "right")
HALF = 36 / 64  # side of the square around one of two subjects, in units of the picture
HALF_TOP = 16 / 64


class Trunk(nn.Module):
    """Residual convolutions from a picture to a map of features at a sixteenth of its side."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        first, *rest = channels
        self.stem = nn.Conv2d(3, first, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip(channels, rest, strict=False))

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        features_BCXY = F.relu(self.stem(pixels_B3SS))
        for block in self.blocks:
            features_BCXY = block(features_BCXY)
        return features_BCXY


class Block(nn.Module):
    """Halve the side, then refine by one residual layer."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels_out) for _ in range(2))
        self.refine = nn.Conv2d(channels_out, channels_out, 3, padding=1)

    def forward(self, features_BCXY: Tensor) -> Tensor:
        reduced_BCXY = F.relu(self.norms[0](self.reduce(features_BCXY)))
        return F.relu(reduced_BCXY + self.norms[1](self.refine(reduced_BCXY)))


class Classifier(nn.Module):
    """What is in a picture: logits by head.

    Shapes:
        pixels_B3SS: in [-1, 1] -> {head: (B, choices)}
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.trunk = Trunk(channels)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * channels[-1], len(HEADS[name])) for name in HEADS})

    def forward(self, pixels_B3SS: Tensor) -> dict[str, Tensor]:
        features_BCXY = self.trunk(pixels_B3SS)
        middle = features_BCXY.shape[-1] // 2
        parts = {"left": features_BCXY[..., :middle], "right": features_BCXY[..., middle:]}
        whole_BC = _pool(features_BCXY)
        return {name: head(_pool(parts[name]) if name in parts else whole_BC) for name, head in self.heads.items()}


class Matcher(nn.Module):
    """Who is in a picture: embeddings that are close for pictures of one individual.

    Shapes:
        pixels_B3SS: in [-1, 1], one subject each -> (B, E), of length 1
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.trunk = Trunk(channels)
        self.project = nn.Linear(2 * channels[-1], width)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        return F.normalize(self.project(_pool(self.trunk(pixels_B3SS))).float(), dim=-1)


class Judges(nn.Module):
    """Both judges, asked with pictures."""

    def __init__(self, channels: Sequence[int] = (32, 48, 96, 192), width: int = 96) -> None:
        super().__init__()
        self.config = {"channels": list(channels), "width": width, "heads": {name: len(HEADS[name]) for name in HEADS}}
        self.classifier = Classifier(channels)
        self.matcher = Matcher(channels, width)

    @torch.no_grad()
    def classify(self, pictures: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        """Probabilities of every choice of every head: {head: (pictures, choices)}."""
        logits = [self.classifier(chunk) for chunk in to_pixels(pictures).split(64)]
        return {name: torch.cat([part[name].float().softmax(-1) for part in logits]).numpy() for name in HEADS}

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Who each picture shows: (pictures, width), rows of length 1."""
        return torch.cat([self.matcher(chunk) for chunk in to_pixels(pictures).split(64)]).numpy()

    def sha256(self) -> str:
        """Of the weights, by which a report names its judges."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.half().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write config.json and the weights in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", "utf-8")
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Judges:
        """The judges of a folder, in fp32 on the CPU.

        Raises:
            MissingError: they are not there. IncompatibleError: they judge another world.
        """
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise MissingError(f"there are no judges in {folder}; train them with `kg base judge nano/judge`")
        config = json.loads((folder / "config.json").read_text("utf-8"))
        if config["heads"] != {name: len(HEADS[name]) for name in HEADS}:
            raise IncompatibleError(
                f"the judges in {folder} know another world; train them: `kg base judge nano/judge`"
            )
        judges = cls(config["channels"], config["width"])
        judges.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
        return judges.eval().to(memory_format=torch.channels_last)


def labels(spec: Spec) -> dict[str, str]:
    """What a right judge says of a picture, for the heads that apply to it."""
    said = {"scene": spec.scene or "blocks", "style": spec.style, "count": str(len(spec.subjects))}
    subjects = [placed.subject for placed in spec.subjects]
    if len(subjects) == 2:
        return said | {side: subject.noun for side, subject in zip(SIDES, subjects, strict=True)}
    only = subjects[0]
    return said | {"noun": only.noun, "accessory": only.accessory or "nothing", "colour": only.look.colour_name}


def label_row(spec: Spec) -> list[int]:
    """The labels of a picture as one number for each head."""
    said: Mapping[str, str] = labels(spec)
    return [HEADS[name].index(said[name]) if name in said else UNASKED for name in HEADS]


def around(picture: Image.Image, index: int, num_subjects: int) -> Image.Image:
    """The part of a picture that the matcher looks at for its subject `index`: all of it, or a square on one side."""
    if num_subjects == 1:
        return picture
    size = picture.width
    left = 0.0 if index == 0 else size * (1 - HALF)
    box = (left, size * HALF_TOP, left + size * HALF, size * (HALF_TOP + HALF))
    return picture.resize((size, size), Image.Resampling.BILINEAR, box)


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as (B, 3, S, S) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1.0  # a channels-last tensor already


def _pool(features_BCXY: Tensor) -> Tensor:
    return torch.cat([features_BCXY.mean((-2, -1)), features_BCXY.amax((-2, -1))], dim=1)
