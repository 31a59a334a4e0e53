"""A run's pool: the VAE moments of its targets, encoded once and reused while its source stays the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from kgcli.data.pool import Pool, PoolImages, collate_pool
from kgcli.data.sources.base import Source
from kgcli.errors import ConfigError, KgError
from kgcli.files import locked, write_whole
from kgcli.model.diffusion import Diffusion
from kgcli.training.logging import say
from kgcli.training.parallel import OneProcess
from kgcli.training.precision import autocast

MADE_OF = "made_of.json"
ENCODED_PIXELS = 1 << 20  # encoded at once: 64 images of 128 px, 4 of 512 px, a few GB in the VAE of SD
DECODES = ("decoder.", "post_quant_conv.")  # parts of a VAE that its moments do not depend on


def make_pool(
    folder: Path,
    source: Source,
    diffusion: Diffusion,
    processes: OneProcess,
    device: torch.device,
    *,
    image_size: int,
    precision: str,
    num_workers: int,
    shared: bool = False,
) -> Pool:
    """Return the cached moments in a folder, encoded now if they are not there yet or are of other images.

    Those of a source with several parts are kept by part: an interrupted call goes on with the next one, and runs
    with the same shards and VAE can share a folder (`shared`).

    Raises:
        ConfigError: the source is endless.
        KgError: a target cannot be read, or not now: what stands for it would be cached as its own.
        BusyError: another run fills the shared folder.
    """
    check_pool_source(source)
    settings = {"image_size": image_size, "precision": precision, "vae": _sha256(diffusion)}
    parts = source.parts()
    alone = len(parts) == 1 and not shared
    folders = [folder] if alone else [folder / _name({**part.fingerprint, **settings}) for part in parts]
    if processes.is_main:
        with locked(folder) if shared else contextlib.nullcontext():
            for part, place in zip(parts, folders, strict=True):
                # The U-Net's own sample size does not count: it takes latents of any.
                images = PoolImages(source, part, image_size, image_size // diffusion.pixels_per_latent)
                made_of = {**part.fingerprint, **settings}
                if alone:  # the names of a user's files say less than the hashes of shards
                    made_of["first"] = hashlib.sha256(_target(images, 0).numpy().tobytes()).hexdigest()
                if read_made_of(place) != made_of:
                    with torch.no_grad(), autocast(device, precision):
                        _fill(place, images, diffusion, device, num_workers)
                    write_whole(place / MADE_OF, json.dumps(made_of, indent=2) + "\n")
    processes.wait()
    return Pool(*folders)


def check_pool_source(source: Source) -> None:
    """Check that the VAE moments of a source can be cached.

    Raises: ConfigError for an endless one.
    """
    if source.num_rows is None:
        raise ConfigError(
            "this stage works on cached VAE moments, and the nano world is endless: "
            "set data.pool to the number of its images"
        )


def _name(made_of: dict[str, Any]) -> str:
    """Return the name of a part's folder."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def _target(images: PoolImages, row: int) -> torch.Tensor:
    found = images[row]
    if isinstance(found, KgError):
        raise found
    return found[0]


def _sha256(diffusion: Diffusion) -> str:
    vae = hashlib.sha256()
    for name, tensor in sorted(diffusion.vae.state_dict().items()):
        if name.startswith(DECODES):
            continue
        vae.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return vae.hexdigest()


def read_made_of(folder: Path) -> dict[str, Any] | None:
    """Return the fingerprint of the cache in a folder; None if there is no complete one."""
    try:
        return dict(json.loads((folder / MADE_OF).read_text("utf-8")))
    except (OSError, ValueError):
        return None


def _fill(folder: Path, images: PoolImages, diffusion: Diffusion, device: torch.device, num_workers: int) -> None:
    (folder / MADE_OF).unlink(missing_ok=True)  # incomplete until the last row is written
    latent_size = images.latent_size
    shape = (2 * diffusion.vae.config.latent_channels, latent_size, latent_size)
    moments, subject = Pool.create(folder, len(images), shape)
    place, said = 0, 0
    at_once = max(ENCODED_PIXELS // images.image_size**2, 1)
    for found in DataLoader(images, batch_size=at_once, num_workers=num_workers, collate_fn=collate_pool):
        if isinstance(found, KgError):
            raise found
        pixels, masks = found
        mean, logvar = diffusion.moments(pixels.to(device, memory_format=torch.channels_last))
        rows = slice(place, place + len(pixels))
        moments[rows] = torch.cat([mean, logvar], 1).half().cpu().numpy()
        subject[rows] = masks.numpy()
        place += len(pixels)
        if place - said >= 6400:
            say(f"encoded {place} of {len(images)} images")
            said = place
    moments.flush()
    subject.flush()
    Pool.finish(folder)
