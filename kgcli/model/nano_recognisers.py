"""The recognisers: two small networks that classify a nano-world image and identify its subject.

They are trained on rendered images of instances that no generator is trained on, and share nothing with a generator.

Shape letters: B images, C channels, X Y places, S pixels, E embedding.
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
from kgcli.world.tables import ACCESSORIES, COLOURS, NOUNS, SCENES, SIZE, STYLES
from kgcli.world.view import WORLD, check_world, how_to_train

# The classes of each head. None of the lists may be reordered: weights depend on it.
SUBJECT_HEADS: dict[str, list[str]] = {"noun": list(NOUNS), "colour": list(COLOURS)}  # of the one subject in the crop
SCENE_HEADS: dict[str, list[str]] = {
    "scene": [*SCENES, "blocks"],  # blocks: the scene that a style implies
    "style": list(STYLES),
    "accessory": ["nothing", *ACCESSORIES],  # where there is one subject
    "count": ["1", "2"],
}
HEADS = {**SUBJECT_HEADS, **SCENE_HEADS}
IGNORED = -100  # label of a head that does not apply to an image
GRID = 4  # places across and down at which the scene recogniser pools its stem's features
HALF = 36 / 64  # side of the square around one of two subjects, in units of the image's side
HALF_TOP = 16 / 64


class Trunk(nn.Module):
    """Residual convolutions from an image to a feature map at a sixteenth of its side."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        first, *rest = channels
        self.stem = nn.Conv2d(3, first, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip(channels, rest, strict=False))

    def forward(self, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Return the final and the stem's feature map; the stem's, not normalised, keeps colours and fine texture."""
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


class SceneRecogniser(nn.Module):
    """A classifier of an image's scene, style, accessory and number of subjects: logits by head.

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
        # Mean and mean square per position: styles differ mostly in texture, which deep features lose.
        texture_BCXY = F.adaptive_avg_pool2d(torch.cat([stem_BCXY, stem_BCXY.square()], dim=1), GRID)
        pooled_BC = torch.cat([_pool(features_BCXY), texture_BCXY.flatten(1)], dim=1)
        return {name: head(pooled_BC) for name, head in self.heads.items()}


class SubjectRecogniser(nn.Module):
    """An identity embedding, close for images of one instance, and a classifier of noun and colour.

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
        middle_BCXY = stem_BCXY[..., quarter:-quarter, quarter:-quarter]  # the subject's region, colours unchanged
        pooled_BC = torch.cat([_pool(features_BCXY), _pool(middle_BCXY)], dim=1)
        embedding_BE = F.normalize(self.project(pooled_BC).float(), dim=-1)
        return embedding_BE, {name: head(pooled_BC) for name, head in self.heads.items()}


class Recognisers(nn.Module):
    """Both recognisers, applied to images."""

    def __init__(
        self,
        scene: Sequence[int] = (32, 48, 64, 96),
        subject: Sequence[int] = (32, 64, 96, 192),
        width: int = 96,
    ) -> None:
        super().__init__()
        self.config = {"scene": list(scene), "subject": list(subject), "width": width, "heads": _sizes()}
        self.scene = SceneRecogniser(scene)
        self.subject = SubjectRecogniser(subject, width)

    @torch.no_grad()
    def classify(self, images: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        """Return the probabilities of each head's classes: {head: (images, classes)}."""
        logits = [self.scene(chunk) | self.subject(chunk)[1] for chunk in to_pixels(images).split(64)]
        return {name: torch.cat([part[name].float().softmax(-1) for part in logits]).numpy() for name in HEADS}

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return an identity embedding per image: (images, width), rows of length 1."""
        return torch.cat([self.subject(chunk)[0] for chunk in to_pixels(images).split(64)]).numpy()

    def sha256(self) -> str:
        """Hash of the weights, recorded in reports."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.half().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path, image_size: int = SIZE) -> None:
        """Write config.json and the weights in half precision; `image_size` is that of the images they learnt from."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {**self.config, WORLD: image_size}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Recognisers:
        """Load the recognisers of a folder, in fp32 on the CPU.

        Raises:
            MissingError: they are not there. IncompatibleError: they were trained on another world.
        """
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise MissingError(f"there are no recognisers in {folder}; train them with {how_to_train('judge')}")
        config = json.loads((folder / "config.json").read_text("utf-8"))
        check_world(config, folder, "judge")
        if config.get("heads") != _sizes() or "scene" not in config:
            raise IncompatibleError(
                f"the recognisers in {folder} were trained on another world; train them: {how_to_train('judge')}"
            )
        loaded = cls(config["scene"], config["subject"], config["width"])
        loaded.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
        return loaded.eval().to(memory_format=torch.channels_last)


def labels(spec: Spec, index: int = 0) -> dict[str, str]:
    """Return the true classes of an image and of its subject `index`, for the heads that apply."""
    one = spec.subjects[index].subject
    found = {"noun": one.noun, "colour": one.look.colour_name, "scene": spec.scene or "blocks", "style": spec.style}
    found["count"] = str(len(spec.subjects))
    return found if len(spec.subjects) > 1 else found | {"accessory": one.accessory or "nothing"}


def label_row(spec: Spec, index: int = 0) -> list[int]:
    """Return the labels as one class index per head, `IGNORED` where a head does not apply."""
    found = labels(spec, index)
    return [HEADS[name].index(found[name]) if name in found else IGNORED for name in HEADS]


def around(image: Image.Image, index: int, num_subjects: int) -> Image.Image:
    """Return the crop in which subject `index` is identified: the whole image, or a square on one side of two."""
    if num_subjects == 1:
        return image
    size = image.width
    left = 0.0 if index == 0 else size * (1 - HALF)
    box = (left, size * HALF_TOP, left + size * HALF, size * (HALF_TOP + HALF))
    return image.resize((size, size), Image.Resampling.BILINEAR, box)


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Convert images of one size to (B, 3, S, S) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1.0  # already channels-last


def _sizes() -> dict[str, int]:
    return {name: len(choices) for name, choices in HEADS.items()}


def _pool(features_BCXY: Tensor) -> Tensor:
    return torch.cat([features_BCXY.mean((-2, -1)), features_BCXY.amax((-2, -1))], dim=1)
