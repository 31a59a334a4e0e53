"""The config.json of a model folder, read and checked."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from kgcli.config import CONFIG_NAME, ModelConfig
from kgcli.errors import IncompatibleError, MissingError
from kgcli.reading import read_json

MAX_CONFIG_BYTES = 2**20


def read_model_config(folder: Path) -> ModelConfig:
    """The sizes of a model folder.

    Raises:
        MissingError: the folder or its config.json is not there or is no JSON.
        IncompatibleError: it holds other keys or values than this version knows.
    """
    if not folder.is_dir():
        raise MissingError(f"there is no model folder {folder}")
    return read_model_config_file(folder / CONFIG_NAME)


def read_model_config_file(path: Path) -> ModelConfig:
    """The sizes that a config.json states. Raises as `read_model_config`."""
    if not path.is_file():
        raise MissingError(f"there is no {path.name} in {path.parent}; a model folder has one")
    values = read_json(path, max_bytes=MAX_CONFIG_BYTES)
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise IncompatibleError(f"{path} is of another version: {where or 'model'}: {first['msg']}") from None
