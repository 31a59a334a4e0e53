"""The world of nano evaluation: the size of images that are measured there, and the networks that score them.

True renders, inputs, galleries and generated images have SIZE x SIZE pixels; models made for another size are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kgcli.config import SamplingConfig
from kgcli.errors import IncompatibleError, KgError, MissingError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.reading import read_json
from kgcli.weights.folder import RENAMED_REPOSITORIES, ModelFolder, check_diffusers_part, open_model
from kgcli.weights.hub import is_hub_id, snapshot
from kgcli.weights.shipped import EVALUATORS, RECOGNISERS
from kgcli.world.tables import SIZE
from kgcli.world.view import check_world, how_to_train

VERSION = 2  # of the suites' data and prompts: raised whenever a change makes scores incomparable
JUDGES = "judges"  # folder of the recognisers, in a folder of weights for scoring
EXTRACTORS = ("eval_clip", "eval_dino")  # stages that train the extractors, and their folders
_SIZED = ("unet", "vae")  # parts of a decoder whose configurations tell the size of its images
# Sampling settings of the nano suites, and of a U-Net without a language model: fixed, so that scores stay comparable.
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
    _check_size(folder.cfg.generation.size, folder.name)


def check_decoder(decoder: str | Path, *, offline: bool = False) -> None:
    """Check that a diffusers folder, or one on the Hub, was trained for the world's size, where its configurations
    tell. Of the Hub's, only those are fetched.

    Raises: MissingError, IncompatibleError.
    """
    folder = Path(decoder).expanduser()
    if folder.exists() or not is_hub_id(str(decoder)):
        configs = [check_diffusers_part(folder, part) for part in _SIZED]
    else:
        repository = RENAMED_REPOSITORIES.get(str(decoder), str(decoder))
        folder = snapshot(repository, files=[f"{part}/config.json" for part in _SIZED], offline=offline)
        configs = [read_json(folder / part / "config.json") for part in _SIZED]
    _check_configs(configs, str(decoder))


def check_given_decoder(folder: ModelFolder) -> None:
    """Check that the decoder given with a model was trained for the world's size, as `check_decoder` does; of a single
    file, the configurations that it is loaded with tell.

    Raises: MissingError, IncompatibleError.
    """
    if folder.decoder_sizes is None:
        check_decoder(folder.decoder)
    else:
        configs = [read_json(folder.decoder_sizes / part / "config.json") for part in _SIZED]
        _check_configs(configs, folder.decoder)


def check_method(options: MethodOptions) -> None:
    """Check that the decoder and the model given to a method, or else its own model, make images of the world's size.

    Folders that cannot be read are left to the method's own checks.

    Raises: IncompatibleError.
    """
    try:
        if options.decoder is not None and Path(options.decoder).expanduser().is_file():
            check_given_decoder(open_model(options.model, options.decoder, options.offline))
        elif options.decoder is not None:
            check_decoder(options.decoder, offline=options.offline)
        if options.decoder is None or options.model is not None:
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
            f"{place} was made by version {made} of the nano suites; this is version {VERSION}: generate again into "
            "another folder"
        )


def _check_configs(configs: Sequence[Any], name: str) -> None:
    """Check the size that the configurations of a decoder's U-Net and VAE tell; others than dicts tell none."""
    unet, vae = (config if isinstance(config, dict) else {} for config in configs)
    latents, blocks = unet.get("sample_size"), vae.get("block_out_channels")
    if isinstance(latents, int) and isinstance(blocks, list):
        side = latents * 2 ** (len(blocks) - 1)
        _check_size((side, side), name)


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if size != (SIZE, SIZE):
        pixels = f"{width}" if width == height else f"{width} x {height}"
        raise IncompatibleError(
            f"{name} makes images of {pixels} px; the nano world has images of {SIZE} px and measures only models "
            "that make those"
        )
