"""Files of tensors; a failed write raises OSError, as for any other file."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kgcli.errors import MissingError, printable

MAX_MEMBERS = 1_000_000  # of an archive; a model has a few thousand tensors
_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, keeping the mode of an existing file (the library's default is 600).

    Raises: OSError.
    """
    mode = path.stat().st_mode & 0o777 if path.exists() else None
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = _ERROR_NUMBER.search(str(error))
        if number is None:
            raise
        raise OSError(int(number.group(1)), str(error)) from None
    if mode is not None:
        path.chmod(mode)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a file that `torch.load(..., weights_only=True)` reads.

    Raises: OSError.
    """
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch wraps the file's error in its own
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def check_archive(path: Path) -> None:
    """Check that the sizes stated by an archive of tensors fit the file; torch writes members uncompressed.

    Raises: MissingError.
    """
    if not zipfile.is_zipfile(path):
        return  # the format before torch 1.6, or damaged: reported on loading
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise MissingError(f"{printable(path)} is damaged ({error})") from None
    if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > size:
        raise MissingError(f"{printable(path)} is damaged: it states more bytes than it has; it was not read")
