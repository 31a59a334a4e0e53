"""Where pictures go: names from -o, refusals before any work is done, and writing all or nothing. No torch."""

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
from kgcli.inference.metadata import FORMATS, Metadata, encode_picture, sidecar
from kgcli.inference.request import Request

FIELDS = ("prompt", "seed", "index")
DEFAULT_TEMPLATE = "{prompt}-{seed}.png"
SLUG_LENGTH = 40  # characters


@dataclass(frozen=True)
class OutputPlan:
    """How the pictures of one run are named."""

    template: Path

    @classmethod
    def parse(cls, out: str | None, num_pictures: int) -> OutputPlan:
        """Read -o: a file, a folder (there already, or with a slash at its end) or a template of `FIELDS`.

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
                f"--out {out} ends in none of {', '.join(FORMATS)}; for a folder write {out}/ with a slash"
            )
        if num_pictures > 1 and not fields:
            path = path.with_name(f"{path.stem}-{{index}}{path.suffix}")
        return cls(path)

    def path(self, request: Request, index: int) -> Path:
        """The file of the picture number `index` (from 1)."""
        values = {"prompt": slug(request.prompt), "seed": request.seed, "index": index}
        return Path(str(self.template).format(**values))


def slug(prompt: Prompt) -> str:
    """The prompt's words as a short file name."""
    words = " ".join(part if isinstance(part, str) else Path(part.name).stem for part in prompt.parts)
    return re.sub(r"[\W_]+", "-", words.lower())[:SLUG_LENGTH].strip("-") or "picture"


def check_writable(path: Path) -> None:
    """Make the folder of a file and see that a file can be written in it.

    Raises: OutputError.
    """
    with output_errors(path):
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give a file name in it, or end it with a slash")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def check_picture_file(path: Path) -> None:
    """`check_writable`, of a picture.

    Raises: UsageError for an ending that no picture has; OutputError.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path} ends in none of {', '.join(FORMATS)}")
    check_writable(path)


def write_picture(path: Path, image: Image.Image, metadata: Metadata | None, *, overwrite: bool = True) -> None:
    """Write an image and, where its format needs one, the file beside it; never half of one.

    Without `overwrite` a file that is there by now stays. With it, the file beside an older image goes first: at no
    moment does one image lie beside the metadata of another.

    Raises: OutputError.
    """
    data = encode_picture(image, path.suffix, metadata)
    beside = sidecar(path)
    if overwrite and beside is not None:
        with output_errors(beside):
            beside.unlink(missing_ok=True)
    write_whole(path, data, overwrite=overwrite)
    if metadata is not None and beside is not None:
        write_whole(beside, json.dumps(metadata, ensure_ascii=False, indent=2) + "\n", overwrite=overwrite)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file under another name in the same folder, then rename it.

    Raises: OutputError.
    """
    write_whole(path, data)


def _user_path(text: str) -> Path:
    """Return a path as the user wrote it, `~` expanded. Raises: UsageError."""
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
    """The names in braces.

    Raises: UsageError for one that is not known.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"--out {template} is no template: {error}; write {{{{ for a plain brace") from None
    fields = [name for _, name, _, _ in parsed if name is not None]
    for name, spec, conversion in ((n, s, c) for _, n, s, c in parsed if n is not None):
        plain = not spec or (name != "prompt" and re.fullmatch(r"0?\d{1,2}d?", spec))
        if name not in FIELDS or conversion or not plain:
            raise UsageError(f"--out {template}: {{{name}}} is not known; the fields are {{prompt}} {{seed}} {{index}}")
    return fields


def _literal(path: Path) -> Path:
    """A path whose braces stand for themselves in a template."""
    return Path(str(path).replace("{", "{{").replace("}", "}}"))
