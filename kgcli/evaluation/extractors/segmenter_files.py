"""The files of a segmenter, found and checked before anything is generated."""

from __future__ import annotations

import json
from pathlib import Path

from kgcli.errors import IncompatibleError, MissingError
from kgcli.evaluation.extractors.weight_files import Weights
from kgcli.files import sha256
from kgcli.weights.hub import HubError, is_hub_id, snapshot

DEFAULT = "default"  # stands for REPOSITORY
REPOSITORY = "CIDAS/clipseg-rd64-refined"
KIND = "clipseg"  # model_type
PICKLED = "pytorch_model.bin"
WEIGHTS = ("model.safetensors", PICKLED)
# Alternatives per row; one of each must be complete.
SETTINGS = (
    (("config.json",),),
    (("preprocessor_config.json",), ("processor_config.json",)),
    (("tokenizer.json",), ("vocab.json", "merges.txt")),
)


def find_segmenter(name: str, *, offline: bool = False) -> Weights:
    """Find the weights of a CLIPSeg with its settings beside them: a folder, a Hub id, or `default`.

    Raises: MissingError with the remedy; IncompatibleError for a folder of another model.
    """
    folder = Path(name).expanduser()
    if name == DEFAULT or not folder.exists():
        folder = _of_hub(REPOSITORY if name == DEFAULT else name, offline)
    if not folder.is_dir():
        raise MissingError(f"--segmenter is {name}, a file; give the folder it is in")
    kind = _kind_of(folder)
    if kind != KIND:
        raise IncompatibleError(f"the segmenter {folder} is of type {kind}; it must be {KIND}, as {REPOSITORY}")
    for choices in SETTINGS:
        if not any(all((folder / file).is_file() for file in files) for files in choices):
            named = " or ".join(" with ".join(files) for files in choices)
            raise MissingError(f"the segmenter {folder} has no {named}; copy the whole repository again")
    found = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if found is None:
        raise MissingError(f"the segmenter {folder} has no {' or '.join(WEIGHTS)}; copy the whole repository again")
    return Weights(found, sha256(found))


def _kind_of(folder: Path) -> str:
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text("utf-8")).get("model_type"))
    except OSError:
        raise MissingError(f"the segmenter {folder} has no config.json; give a folder of {KIND}") from None
    except (ValueError, AttributeError) as error:
        raise MissingError(f"{path} is damaged ({error}); copy the whole repository again") from None


def _of_hub(repository: str, offline: bool) -> Path:
    """Return the folder of a Hub repository, from the cache if present; one weight file is downloaded."""
    if not is_hub_id(repository):
        raise MissingError(f"there is no segmenter folder {repository}")
    settings = [file for choices in SETTINGS for files in choices for file in files]
    try:
        for weights in WEIGHTS:
            folder = snapshot(repository, files=[*settings, weights], offline=offline)
            if (folder / weights).is_file():
                break
        return folder
    except HubError as error:
        raise MissingError(
            f"the segmenter {repository} is not a folder and could not be downloaded ({error}): copy "
            f"https://huggingface.co/{repository} into a folder and give --segmenter FOLDER, or run once online"
        ) from None
