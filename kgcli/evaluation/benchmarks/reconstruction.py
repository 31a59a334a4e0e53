"""VAE reconstruction scores: PSNR, strong edges, fine detail and styles, on renders of new instances.

Shape letters: N images, X Y pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from kgcli.data.sources.world_sample import BASE_NOUNS
from kgcli.errors import MissingError
from kgcli.evaluation.metrics.intervals import Estimate, bootstrap
from kgcli.world.rendering import render, stands_out
from kgcli.world.spec import Spec, draw_spec
from kgcli.world.tables import STYLES

STRONG_EDGE = 0.2  # of a range of 2: steeper places of the truth are counted
MEASURES = {
    "psnr": "PSNR (dB)",
    "edges": "strong edges, of the truth's",
    "laplacian": "Laplacian energy, of the truth's",
}
STYLED = {f"style {name}": f"degree of style kept: {name}" for name in list(STYLES)[1:]}
TWO_SUBJECTS = 0.3  # fraction of images
NUM_STYLED = 16  # images of each style
BATCH = 8


@dataclass(frozen=True)
class Reconstruction:
    """Means over images with their 95 % intervals."""

    settings: dict[str, object]
    estimates: dict[str, Estimate]
    channel_effects: list[float]  # mean change of a pixel when a latent channel is set to 0, of the mean over channels

    def to_json(self) -> str:
        """Return all scores as JSON."""
        scores = {name: vars(estimate) for name, estimate in self.estimates.items()}
        return json.dumps({**self.settings, **scores, "channel_effects": self.channel_effects}, indent=2)

    def __str__(self) -> str:
        lines = [
            f"{(MEASURES | STYLED)[name]:34} {e.value:6.2f} [{e.low:.2f}, {e.high:.2f}]  n = {e.num}"
            for name, e in self.estimates.items()
        ]
        return "\n".join(
            [*lines, f"{'least effect of a latent channel':34} {min(self.channel_effects):6.2f} of the mean channel's"]
        )


def evaluate_vae(folder: Path, *, num: int = 64, seed: int = 0, grid: Path | None = None) -> Reconstruction:
    """Measure the VAE of a folder (its own, or one with a `vae` folder inside) on `num` new instances.

    Raises: MissingError where there is no VAE.
    """
    vae = load_vae(folder)
    pixels_N3XY = torch.cat([_pixels(spec) for spec in draw_specs(num, seed)])
    rebuilt_N3XY = torch.cat([_rebuild(vae, part) for part in pixels_N3XY.split(BATCH)])
    if grid is not None:
        draw_rows([pixels_N3XY[:12], rebuilt_N3XY[:12]]).save(grid)
    measured = {
        "psnr": psnr(pixels_N3XY, rebuilt_N3XY),
        "edges": edge_ratio(pixels_N3XY, rebuilt_N3XY),
        "laplacian": laplacian_ratio(pixels_N3XY, rebuilt_N3XY),
    } | {f"style {name}": _style_kept(vae, name, seed) for name in list(STYLES)[1:]}
    estimates = {
        name: Estimate(float(values.mean()), *bootstrap(values.tolist()), len(values), "bootstrap")
        for name, values in measured.items()
    }
    return Reconstruction({"num": num, "seed": seed}, estimates, _channel_effects(vae, pixels_N3XY[:16]))


def load_vae(folder: Path) -> AutoencoderKL:
    """Return the VAE of a folder, or of the `vae` folder inside. Raises: MissingError."""
    inner = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (inner / "config.json").is_file():
        raise MissingError(f"there is no VAE in {folder}; give a diffusers folder, or its vae folder")
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(inner, local_files_only=True)
    return vae.eval().to(memory_format=torch.channels_last)


def draw_specs(num: int, seed: int) -> list[Spec]:
    """Return specs of new instances that no stage sees, in all scenes and styles, three in ten with two subjects."""
    rng, specs = np.random.default_rng([23, seed]), list[Spec]()
    while len(specs) < num:
        spec = draw_spec(rng, BASE_NOUNS, num_subjects=1 + int(rng.random() < TWO_SUBJECTS), new=True)
        if stands_out(spec):
            specs.append(spec)
    return specs


def psnr(pixels_N3XY: Tensor, rebuilt_N3XY: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in [-1, 1], in dB: (N,)."""
    return -10 * torch.log10((pixels_N3XY - rebuilt_N3XY).square().mean((1, 2, 3)) / 4)


def edge_ratio(pixels_N3XY: Tensor, rebuilt_N3XY: Tensor) -> Tensor:
    """Return how steep the truth's strong edges still are, of their own steepness: (N,)."""
    true, rebuilt = _steepness(pixels_N3XY), _steepness(rebuilt_N3XY)
    strong = true > STRONG_EDGE
    return (rebuilt * strong).sum((1, 2)) / (true * strong).sum((1, 2)).clamp(min=1e-6)


def laplacian_ratio(pixels_N3XY: Tensor, rebuilt_N3XY: Tensor) -> Tensor:
    """Return the energy of fine detail, of the truth's: (N,); above 1 is more detail than there was."""
    true, rebuilt = (_laplacian(images).square().mean((1, 2, 3)) for images in (pixels_N3XY, rebuilt_N3XY))
    return rebuilt / true.clamp(min=1e-9)


def style_kept(plain_N3XY: Tensor, styled_N3XY: Tensor, rebuilt_N3XY: Tensor) -> Tensor:
    """Return how far images are on the way from plain ones (0) to those in a style (1): (N,)."""
    way_N3XY = styled_N3XY - plain_N3XY
    return ((rebuilt_N3XY - plain_N3XY) * way_N3XY).sum((1, 2, 3)) / way_N3XY.square().sum((1, 2, 3)).clamp(min=1e-9)


def draw_rows(rows: list[Tensor]) -> Image.Image:
    """Return rows of images in [-1, 1], one above the other."""
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    return Image.fromarray(((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def _pixels(spec: Spec) -> Tensor:
    image = np.asarray(render(spec).image)
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def _rebuild(vae: AutoencoderKL, pixels_N3XY: Tensor) -> Tensor:
    latents = vae.encode(pixels_N3XY.contiguous(memory_format=torch.channels_last)).latent_dist.mean
    return vae.decode(latents).sample.clamp(-1, 1)


def _style_kept(vae: AutoencoderKL, style: str, seed: int) -> Tensor:
    specs = [spec for spec in draw_specs(NUM_STYLED, seed + 1) if spec.scene]
    plain, styled = (torch.cat([_pixels(replace(spec, style=name)) for spec in specs]) for name in ("photo", style))
    return style_kept(plain, styled, torch.cat([_rebuild(vae, part) for part in styled.split(BATCH)]))


@torch.no_grad()
def _channel_effects(vae: AutoencoderKL, pixels_N3XY: Tensor) -> list[float]:
    latents = vae.encode(pixels_N3XY).latent_dist.mean
    whole = vae.decode(latents).sample
    effects = []
    for channel in range(latents.shape[1]):
        without = latents.clone()
        without[:, channel] = 0
        effects.append(float((vae.decode(without).sample - whole).abs().mean()))
    return [effect / (sum(effects) / len(effects)) for effect in effects]


def _steepness(images_N3XY: Tensor) -> Tensor:
    gray = images_N3XY.mean(1)
    across, down = gray[:, 1:, 1:] - gray[:, 1:, :-1], gray[:, 1:, 1:] - gray[:, :-1, 1:]
    return (across.square() + down.square()).sqrt()


def _laplacian(images_N3XY: Tensor) -> Tensor:
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    return F.conv2d(images_N3XY.mean(1, keepdim=True), kernel)
