"""A run's pool: its pictures' VAE moments, encoded once and kept for as long as they are those the recipe draws."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from kgcli.data.batch import Pool, PoolPictures
from kgcli.errors import ConfigError
from kgcli.files import write_whole
from kgcli.model.diffusion import Diffusion
from kgcli.training.logging import say

if TYPE_CHECKING:
    from kgcli.training.loop import Run

MADE_OF = "made_of.json"


def make_pool(run: Run) -> Pool:
    """The run's cached pictures, encoded now if they are not there yet or are not those of its recipe.

    Raises:
        ConfigError: the recipe has no pool.
    """
    if run.recipe.data.pool is None:
        raise ConfigError(
            f"stage {run.recipe.stage} works on cached VAE moments; set data.pool to the number of pictures"
        )
    folder = run.folder / "pool"
    diffusion = run.stage.diffusion
    assert isinstance(diffusion, Diffusion), "a stage with a pool has a decoder"
    if run.accelerator.is_main_process:
        # The U-Net's own sample size does not count: it takes latents of any.
        pictures = PoolPictures(run.recipe, run.recipe.image_size // diffusion.pixels_per_latent)
        made_of = describe(run, diffusion, pictures)
        if _read(folder) != made_of:
            _fill(run, diffusion, pictures, folder)
            write_whole(folder / MADE_OF, json.dumps(made_of, indent=2) + "\n")
    run.accelerator.wait_for_everyone()
    return Pool(folder)


def describe(run: Run, diffusion: Diffusion, pictures: PoolPictures) -> dict[str, Any]:
    """What decides a pool's numbers: the recipe's draws, how the first is painted, and the VAE."""
    data = run.recipe.data
    vae = hashlib.sha256()
    for name, tensor in sorted(diffusion.vae.state_dict().items()):
        vae.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return {
        "kinds": data.kinds,
        "seed": data.seed,
        "num": data.pool,
        "image_size": run.recipe.image_size,
        "precision": run.recipe.precision,
        "first": hashlib.sha256(pictures[0][0].numpy().tobytes()).hexdigest(),
        "vae": vae.hexdigest(),
    }


def _read(folder: Path) -> dict[str, Any] | None:
    """What the pool in a folder was made of; None where there is no whole one."""
    try:
        return dict(json.loads((folder / MADE_OF).read_text("utf-8")))
    except (OSError, ValueError):
        return None


def _fill(run: Run, diffusion: Diffusion, pictures: PoolPictures, folder: Path) -> None:
    (folder / MADE_OF).unlink(missing_ok=True)  # until the last number is written, this is no pool
    latent_size = pictures.latent_size
    shape = (2 * diffusion.vae.config.latent_channels, latent_size, latent_size)
    moments, subject = Pool.create(folder, len(pictures), shape)
    place = 0
    with torch.no_grad(), run.accelerator.autocast():
        for pixels, masks in DataLoader(pictures, batch_size=64, num_workers=run.recipe.data.num_workers):
            mean, logvar = diffusion.moments(pixels.to(run.device, memory_format=torch.channels_last))
            rows = slice(place, place + len(pixels))
            moments[rows] = torch.cat([mean, logvar], 1).half().cpu().numpy()
            subject[rows] = masks.numpy()
            place += len(pixels)
            if place % 6400 == 0:
                say(f"encoded {place} of {len(pictures)} pictures")
    moments.flush()
    subject.flush()
    Pool.finish(folder)
