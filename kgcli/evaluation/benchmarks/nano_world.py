"""Which of the two nano worlds a model, a method or a run belongs to, and what it is measured with there.

A model belongs to the world of the images it makes by default, a decoder to that of the images it was trained for.
True renders, inputs, galleries and generated images then have that world's size; in a plan it is `protocol.size`, which
runs of the first world lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kgcli.config import SamplingConfig
from kgcli.errors import KgError, MissingError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.reading import read_json
from kgcli.weights.folder import ModelFolder, check_diffusers_part, open_model
from kgcli.weights.shipped import DEFAULT_MODEL
from kgcli.world.sizes import FIRST_SIZE, check_world, how_to_train, shipped_for, world_of
from kgcli.world.spec import FLUENT_SIZE

SIZE = "size"  # key of a protocol
JUDGES = "judges"  # folder of the recognisers, in a folder of weights for scoring
EXTRACTORS = ("eval_clip", "eval_dino")  # stages that train the extractors, and their folders
# Sampling settings of nano models, by world.
SAMPLING = {
    size: SamplingConfig(num_inference_steps=25, guidance_scale=scale, scheduler="ddim", width=size, height=size)
    for size, scale in ((FIRST_SIZE, 3.0), (FLUENT_SIZE, 2.5))
}


@dataclass(frozen=True, kw_only=True)
class NanoWeights:
    """The folders of the networks that score a world: recognisers, and the two extractors."""

    judges: Path
    evaluators: Path


def find_weights(world: int, folder: Path | None = None) -> NanoWeights:
    """Return the networks that ship for a world, or those of a folder with `judges`, `eval_clip` and `eval_dino`.

    Raises: MissingError; IncompatibleError for networks of the other world.
    """
    if folder is None:
        found = NanoWeights(judges=shipped_for(JUDGES, world), evaluators=shipped_for("evaluators", world))
    else:
        own = folder.expanduser()
        found = NanoWeights(
            judges=own / JUDGES if (own / JUDGES).is_dir() else shipped_for(JUDGES, world), evaluators=own
        )
    needed = {"judge": found.judges, **{stage: found.evaluators / stage for stage in EXTRACTORS}}
    for stage, place in needed.items():
        if not place.is_dir():
            raise MissingError(
                f"there is no {place}, which scores the world of {world} px; train it with "
                f"{how_to_train(stage, world)} and give --weights FOLDER with {JUDGES}, {' and '.join(EXTRACTORS)}"
            )
        check_world(read_json(place / "config.json"), world, place, stage)
    return found


def world_of_model(folder: ModelFolder) -> int:
    """Return the size of the world that a model belongs to."""
    return world_of(folder.cfg.generation.width)


def world_of_method(options: MethodOptions) -> int:
    """Return the size of the world that a method belongs to: that of its decoder if one is given, else its model's.

    Folders that cannot be read count as the first world's: the method's own checks report them.
    """
    try:
        if options.decoder is not None:
            return world_of(decoder_size(Path(options.decoder).expanduser()))
        return world_of_model(open_model(options.model, offline=options.offline, with_decoder=False))
    except KgError:
        return FIRST_SIZE


def decoder_size(folder: Path) -> int | None:
    """Return the pixels, square, that a diffusers folder was trained for; None if its configurations do not tell.

    Raises: MissingError.
    """
    latents = check_diffusers_part(folder, "unet").get("sample_size")
    blocks = check_diffusers_part(folder, "vae").get("block_out_channels")
    if not isinstance(latents, int) or not isinstance(blocks, list):
        return None
    return int(latents * 2 ** (len(blocks) - 1))


def shipped_world() -> int:
    """Return the size of the world of the model, and so of the adapters, that ship."""
    return world_of_model(open_model(str(DEFAULT_MODEL), with_decoder=False))


def size_facts(world: int) -> dict[str, int]:
    """Return the size as protocols hold it: nothing for the first world."""
    return {} if world == FIRST_SIZE else {SIZE: world}


def size_of_protocol(protocol: Mapping[str, Any]) -> int:
    """Return the size of the world of a run."""
    return world_of(protocol.get(SIZE))
