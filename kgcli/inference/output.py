"""Output files of images: names from -o, checks before any work, and atomic writes."""

from __future__ import annotations

import json
import os
import re
import string
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from kgcli.data.prompt import Prompt
from kgcli.errors import OutputError, UsageError, printable, reason
from kgcli.files import output_errors, write_whole
from kgcli.inference.metadata import FORMATS, Metadata, encode_image, sidecar
from kgcli.inference.request import Request

FIELDS = ("prompt", "seed", "index")
DEFAULT_TEMPLATE = "{prompt}-{seed}.png"
SLUG_LENGTH = 40  # characters


@dataclass(frozen=True)
class OutputPlan:
    """Naming of the images of one run."""

    template: Path

    @classmethod
    def parse(cls, out: str | None, num_images: int) -> OutputPlan:
        """Parse -o: a file, a folder (existing, or ending in a slash) or a template of `FIELDS`.

        Raises: UsageError.
        """
        if out is None or out == "":
            return cls(Path(DEFAULT_TEMPLATE))
        path = _user_path(out)
        if path.is_dir() or out.endswith(("/", os.sep)):
            return cls(_literal(path) / DEFAULT_TEMPLATE)
        fields = _fields(out)
        if path.suffix.lower() not in FORMATS:
            raise UsageError(
                f"--out {out} must end in one of {', '.join(FORMATS)}; for a folder write {out}/ with a slash"
            )
        if num_images > 1 and not fields:
            path = path.with_name(f"{path.stem}-{{index}}{path.suffix}")
        return cls(path)

    def path(self, request: Request, index: int) -> Path:
        """Return the file of image `index` (from 1)."""
        values = {"prompt": slug(request.prompt), "seed": request.seed, "index": index}
        return Path(str(self.template).format(**values))


def slug(prompt: Prompt) -> str:
    """Return the prompt's words as a short file name."""
    words = " ".join(part if isinstance(part, str) else Path(part.name).stem for part in prompt.parts)
    return re.sub(r"[\W_]+", "-", words.lower())[:SLUG_LENGTH].strip("-") or "image"


def check_writable(path: Path) -> None:
    """Create the folder of a file and check that it is writable.

    Raises: OutputError.
    """
    with output_errors(path):
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give a file name in it, or end it with a slash")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def check_image_file(path: Path) -> None:
    """Check that an image can be written to a path.

    Raises: UsageError for an unsupported file extension; OutputError.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path} must end in one of {', '.join(FORMATS)}")
    check_writable(path)


def write_image(path: Path, image: Image.Image, metadata: Metadata | None, *, overwrite: bool = True) -> None:
    """Write an image and, for JPEG and WebP, its metadata file, each atomically.

    Without `overwrite` an existing file is kept. With it, the old metadata file is removed first, so that an image
    never lies beside the metadata of another.

    Raises: OutputError.
    """
    data = encode_image(image, path.suffix, metadata)
    beside = sidecar(path)
    if overwrite and beside is not None:
        with output_errors(beside):
            beside.unlink(missing_ok=True)
    write_whole(path, data, overwrite=overwrite)
    if metadata is not None and beside is not None:
        write_whole(beside, json.dumps(metadata, ensure_ascii=False, indent=2) + "\n", overwrite=overwrite)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises: OutputError.
    """
    write_whole(path, data)


def _user_path(text: str) -> Path:
    """Return a path given by the user, `~` expanded. Raises: UsageError."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: there is no such user
        why = reason(error) if isinstance(error, OSError | ValueError) else "there is no such user"
        raise UsageError(f"--out {printable(text)} cannot be a file: {why}") from None
    if "\0" in text:
        raise UsageError(f"--out {printable(text)} cannot be a file: it holds a null character")
    return path


def _fields(template: str) -> list[str]:
    """Return the names in braces.

    Raises: UsageError for an unknown one.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"--out {template} is not a template: {error}; write {{{{ for a plain brace") from None
    fields = [name for _, name, _, _ in parsed if name is not None]
    for name, spec, conversion in ((n, s, c) for _, n, s, c in parsed if n is not None):
        plain = not spec or (name != "prompt" and re.fullmatch(r"0?\d{1,2}d?", spec))
        if name not in FIELDS or conversion or not plain:
            raise UsageError(
                f"--out {template}: unknown field {{{name}}}; the fields are {{prompt}} {{seed}} {{index}}"
            )
    return fields


def _literal(path: Path) -> Path:
    """Escape the braces of a path for a template."""
    return Path(str(path).replace("{", "{{").replace("}", "}}"))
