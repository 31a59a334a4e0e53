"""The judges: two small networks that say what a nano-world picture shows and whose picture it is.

They are trained on rendered pictures alone, on individuals no generator sees, and share nothing with any generator.

Shape letters: B pictures, C channels, X Y places, S pixels, E embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kgcli.errors import IncompatibleError, MissingError
from kgcli.world.spec import Spec
from kgcli.world.tables import ACCESSORIES, COLOURS, NOUNS, SCENES, STYLES

# What the judges say of a picture, by head. None of the lists may be reordered: weights depend on it.
SUBJECT_HEADS: dict[str, list[str]] = {"noun": list(NOUNS), "colour": list(COLOURS)}  # of the one subject in sight
SCENE_HEADS: dict[str, list[str]] = {
    "scene": [*SCENES, "blocks"],  # blocks: the place a style brings along
    "style": list(STYLES),
    "accessory": ["nothing", *ACCESSORIES],  # where there is one subject
    "count": ["1", "2"],
}
HEADS = {**SUBJECT_HEADS, **SCENE_HEADS}
UNASKED = -100  # label of a head that has nothing to say of a picture
GRID = 4  # places across and down at which the scene judge sees its stem's features
HALF = 36 / 64  # side of the square around one of two subjects, in units of the picture
HALF_TOP = 16 / 64


class Trunk(nn.Module):
    """Residual convolutions from a picture to a map of features at a sixteenth of its side."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        first, *rest = channels
        self.stem = nn.Conv2d(3, first, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip(channels, rest, strict=False))

    def forward(self, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """The map, and the stem's: not normalised, so it still holds colours and the finest texture."""
        stem_BCXY = F.relu(self.stem(pixels_B3SS))
        features_BCXY = stem_BCXY
        for block in self.blocks:
            features_BCXY = block(features_BCXY)
        return features_BCXY, stem_BCXY


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


class SceneJudge(nn.Module):
    """Where a picture is set, how it is painted, what is worn and how many there are: logits by head.

    Shapes:
        pixels_B3SS: in [-1, 1] -> {head: (B, choices)}
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.trunk = Trunk(channels)
        width = 2 * channels[-1] + 2 * channels[0] * GRID * GRID
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(choices)) for name, choices in SCENE_HEADS.items()})

    def forward(self, pixels_B3SS: Tensor) -> dict[str, Tensor]:
        features_BCXY, stem_BCXY = self.trunk(pixels_B3SS)
        # Mean and mean square, place by place: styles differ in texture more than in anything a deep feature keeps.
        texture_BCXY = F.adaptive_avg_pool2d(torch.cat([stem_BCXY, stem_BCXY.square()], dim=1), GRID)
        pooled_BC = torch.cat([_pool(features_BCXY), texture_BCXY.flatten(1)], dim=1)
        return {name: head(pooled_BC) for name, head in self.heads.items()}


class SubjectJudge(nn.Module):
    """Who is in a picture: an embedding that is close for pictures of one individual, and its noun and colour.

    Shapes:
        pixels_B3SS: in [-1, 1], one subject each -> (B, E), of length 1, and {head: (B, choices)}
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.trunk = Trunk(channels)
        pooled = 2 * channels[-1] + 2 * channels[0]
        self.project = nn.Linear(pooled, width)
        self.heads = nn.ModuleDict({name: nn.Linear(pooled, len(choices)) for name, choices in SUBJECT_HEADS.items()})

    def forward(self, pixels_B3SS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features_BCXY, stem_BCXY = self.trunk(pixels_B3SS)
        quarter = stem_BCXY.shape[-1] // 4
        middle_BCXY = stem_BCXY[..., quarter:-quarter, quarter:-quarter]  # where the subject is, colours as they are
        pooled_BC = torch.cat([_pool(features_BCXY), _pool(middle_BCXY)], dim=1)
        embedding_BE = F.normalize(self.project(pooled_BC).float(), dim=-1)
        return embedding_BE, {name: head(pooled_BC) for name, head in self.heads.items()}


class Judges(nn.Module):
    """Both judges, asked with pictures."""

    def __init__(
        self,
        scene: Sequence[int] = (32, 48, 64, 96),
        subject: Sequence[int] = (32, 64, 96, 192),
        width: int = 96,
    ) -> None:
        super().__init__()
        self.config = {"scene": list(scene), "subject": list(subject), "width": width, "heads": _sizes()}
        self.scene = SceneJudge(scene)
        self.subject = SubjectJudge(subject, width)

    @torch.no_grad()
    def classify(self, pictures: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        """Probabilities of every choice of every head: {head: (pictures, choices)}."""
        logits = [self.scene(chunk) | self.subject(chunk)[1] for chunk in to_pixels(pictures).split(64)]
        return {name: torch.cat([part[name].float().softmax(-1) for part in logits]).numpy() for name in HEADS}

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Who each picture shows: (pictures, width), rows of length 1."""
        return torch.cat([self.subject(chunk)[0] for chunk in to_pixels(pictures).split(64)]).numpy()

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
        if config.get("heads") != _sizes() or "scene" not in config:
            raise IncompatibleError(
                f"the judges in {folder} know another world; train them: `kg base judge nano/judge`"
            )
        judges = cls(config["scene"], config["subject"], config["width"])
        judges.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
        return judges.eval().to(memory_format=torch.channels_last)


def labels(spec: Spec, index: int = 0) -> dict[str, str]:
    """What right judges say of a picture and of its subject `index`, for the heads that apply."""
    asked = spec.subjects[index].subject
    said = {"noun": asked.noun, "colour": asked.look.colour_name, "scene": spec.scene or "blocks", "style": spec.style}
    said["count"] = str(len(spec.subjects))
    return said if len(spec.subjects) > 1 else said | {"accessory": asked.accessory or "nothing"}


def label_row(spec: Spec, index: int = 0) -> list[int]:
    """The labels as one number for each head."""
    said = labels(spec, index)
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


def _sizes() -> dict[str, int]:
    return {name: len(choices) for name, choices in HEADS.items()}


def _pool(features_BCXY: Tensor) -> Tensor:
    return torch.cat([features_BCXY.mean((-2, -1)), features_BCXY.amax((-2, -1))], dim=1)
