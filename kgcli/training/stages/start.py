"""Initial weights of a stage (`init_from`): folders, the shipped model, pulled models, and parts on the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from kgcli.data.tokenizer import DICTIONARY_NAME, MODEL_NAMES
from kgcli.errors import MissingError
from kgcli.recipe import maker_of
from kgcli.weights.hub import HubError, is_hub_id, snapshot
from kgcli.weights.published.catalogue import is_entry, local_model
from kgcli.weights.shipped import DEFAULT_MODEL

SHIPPED = "nano"  # the model that ships, and with what follows a slash the folders in it
HUB_FILES = {  # part -> files of the Hub repository that it starts from
    "clip": ("config.json", "model*.safetensors", "model.safetensors.index.json"),
    "tokenizer": ("sentencepiece.model", "sentencepiece.bpe.model", "dict.txt"),
    "text": ("tokenizer/*", "text_encoder/config.json", "text_encoder/model.safetensors"),
    "decoder": (
        "*.json",
        "*/*.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ),
}


class NotFetchedError(MissingError):
    """A part lies on the Hub and is not on this machine yet."""


def find_start(part: str, named: str, *, fetch: bool = True) -> Path:
    """Return the folder that a part starts from; files of the Hub are fetched.

    Raises: MissingError; NotFetchedError for files of the Hub that are not here, without `fetch`.
    """
    if (here := _find_here(named)) is not None:
        return here
    if is_entry(named):
        raise MissingError(f"init_from.{part}: {named} is not on this machine; `kg models pull {named}` fetches it")
    if Path(named).is_file():
        raise MissingError(f"init_from.{part}: {named} is a file; name the folder that holds it")
    maker = maker_of(named)
    missing = f"init_from.{part}: there is no folder {named}; " + (
        f"`{maker}` makes it" if maker else "run the stage that makes it first"
    )
    if maker or part not in HUB_FILES or not is_hub_id(named):
        raise MissingError(missing)
    try:
        return snapshot(named, files=HUB_FILES[part], offline=not fetch)
    except HubError as error:
        if not fetch:
            raise NotFetchedError(f"init_from.{part}: {named} is on the Hub; a run fetches it") from None
        raise MissingError(f"{missing} ({error})") from None


def is_on_hub(named: str) -> bool:
    """Return True if a part that was found is a Hub repository."""
    return _find_here(named) is None


def _find_here(named: str) -> Path | None:
    if Path(named).is_dir():
        return Path(named)
    first, *rest = Path(named).parts or ("",)
    shipped = DEFAULT_MODEL.joinpath(*rest)
    if first == SHIPPED and ".." not in rest and shipped.is_dir():
        return shipped
    return local_model(named)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a part of a model into another, replacing what was there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a SentencePiece tokenizer; the folder may hold other files, as a Hub repository does."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (*MODEL_NAMES, DICTIONARY_NAME):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
