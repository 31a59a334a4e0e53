"""The world of nano evaluation: the size of images that are measured there, and the networks that score them.

True renders, inputs, galleries and generated images have SIZE x SIZE pixels; models made for another size are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kgcli.config import SamplingConfig
from kgcli.errors import IncompatibleError, KgError, MissingError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.reading import read_json
from kgcli.weights.folder import ModelFolder, check_diffusers_part, open_model
from kgcli.weights.shipped import EVALUATORS, RECOGNISERS
from kgcli.world.tables import SIZE
from kgcli.world.view import check_world, how_to_train

VERSION = 2  # of the suites' data and prompts: raised whenever a change makes scores incomparable
JUDGES = "judges"  # folder of the recognisers, in a folder of weights for scoring
EXTRACTORS = ("eval_clip", "eval_dino")  # stages that train the extractors, and their folders
# Sampling settings of nano models.
SAMPLING = SamplingConfig(num_inference_steps=25, guidance_scale=2.5, scheduler="ddim", width=SIZE, height=SIZE)


@dataclass(frozen=True, kw_only=True)
class NanoWeights:
    """The folders of the networks that score nano images: recognisers, and the two extractors."""

    judges: Path
    evaluators: Path


def find_weights(folder: Path | None = None) -> NanoWeights:
    """Return the networks that ship, or those of a folder with `judges` (else those that ship), `eval_clip` and
    `eval_dino`.

    Raises: MissingError; IncompatibleError for networks of another world.
    """
    if folder is None:
        found = NanoWeights(judges=RECOGNISERS, evaluators=EVALUATORS)
    else:
        own = folder.expanduser()
        found = NanoWeights(judges=own / JUDGES if (own / JUDGES).is_dir() else RECOGNISERS, evaluators=own)
    needed = {"judge": found.judges, **{stage: found.evaluators / stage for stage in EXTRACTORS}}
    for stage, place in needed.items():
        if not place.is_dir():
            raise MissingError(
                f"there is no {place}; train it with {how_to_train(stage)} and give --weights FOLDER with {JUDGES}, "
                f"{' and '.join(EXTRACTORS)}"
            )
        check_world(read_json(place / "config.json"), place, stage)
    return found


def check_model(folder: ModelFolder) -> None:
    """Check that a model makes images of the world's size. Raises: IncompatibleError."""
    _check_size(folder.cfg.generation.size[0], folder.name)


def check_decoder(folder: Path) -> None:
    """Check that a diffusers folder was trained for the world's size, where its configurations tell.

    Raises: MissingError, IncompatibleError.
    """
    latents = check_diffusers_part(folder, "unet").get("sample_size")
    blocks = check_diffusers_part(folder, "vae").get("block_out_channels")
    if isinstance(latents, int) and isinstance(blocks, list):
        _check_size(latents * 2 ** (len(blocks) - 1), str(folder))


def check_method(options: MethodOptions) -> None:
    """Check that the decoder of a method, or else its model, makes images of the world's size.

    Folders that cannot be read are left to the method's own checks.

    Raises: IncompatibleError.
    """
    try:
        if options.decoder is not None:
            check_decoder(Path(options.decoder).expanduser())
        else:
            check_model(open_model(options.model, offline=options.offline, with_decoder=False))
    except IncompatibleError:
        raise
    except KgError:
        return


def check_version(protocol: Mapping[str, Any], place: Path) -> None:
    """Check that a run's prompts and images are of this version of the suites. Raises: IncompatibleError."""
    made = protocol.get("version")
    if made != VERSION:
        raise IncompatibleError(
            f"{place} is a run of version {made} of the nano suites, whose images were of another world; this is "
            f"version {VERSION}: generate again into another folder"
        )


def _check_size(pixels: int, name: str) -> None:
    if pixels != SIZE:
        raise IncompatibleError(
            f"{name} makes images of {pixels} px; the nano world has images of {SIZE} px and measures only models "
            "that make those"
        )
