"""What ships with the package: recipes, example pictures and the default model, found by name. No torch."""

from __future__ import annotations

import difflib
from pathlib import Path

from kgcli.config import recipes_folder
from kgcli.errors import MissingError

PACKAGE = Path(__file__).resolve().parents[1]
DEFAULT_MODEL = PACKAGE / "nano" / "model"
ADAPTERS = PACKAGE / "nano" / "adapters"  # of the default model's decoder: folders of ControlNets, files of LoRAs
SD15_SIZES = PACKAGE / "decoders" / "sd15"  # config.json files without weights
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
EXAMPLE_DATA = "example-data/"
_SHOWN_SUFFIXES = (".yaml", *PICTURE_SUFFIXES)


def shipped_names() -> list[str]:
    """Names of all shipped recipes and pictures, such as `nano/align` and `nano/cat.png`, sorted; a data set's own
    images are left out."""
    root = recipes_folder()
    files = (path for path in root.rglob("*") if path.suffix in _SHOWN_SUFFIXES and path.is_file())
    names = sorted(_name(path.relative_to(root)) for path in files)
    return [name for name in names if not (name.startswith(EXAMPLE_DATA) and name.endswith(PICTURE_SUFFIXES))]


def find_shipped(name: str) -> Path | None:
    """The shipped file of a name; `recipes/` in front and `.yaml` behind may be left out."""
    relative = name.replace("\\", "/").removeprefix("./").removeprefix("recipes/")
    if not relative or "\0" in relative or ".." in relative.split("/"):
        return None
    root = recipes_folder()
    for candidate in (root / relative, root / f"{relative}.yaml"):
        if candidate.is_file() and candidate.resolve().is_relative_to(root.resolve()):
            return candidate
    return None


def get_shipped(name: str) -> Path:
    """`find_shipped`, where it must be there.

    Raises: MissingError that names the nearest shipped file.
    """
    path = find_shipped(name)
    if path is None:
        near = difflib.get_close_matches(name, shipped_names(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else "`kg ls` lists all"
        raise MissingError(f"there is no shipped recipe or picture {name}; {hint}")
    return path


def find_picture(path: str) -> str:
    """The path itself, `~` expanded, or where it is not there the shipped picture of that name."""
    try:
        if Path(path).exists() or Path(path).is_absolute():
            return path
        if path.startswith("~"):
            return str(Path(path).expanduser())
    except (OSError, RuntimeError, ValueError):  # too long, no such user, or a null byte: for the opener to report
        return path
    shipped = find_shipped(path) if Path(path).suffix.lower() in PICTURE_SUFFIXES else None
    return path if shipped is None else str(shipped)


def find_adapter(name: str) -> Path | None:
    """The shipped ControlNet folder or LoRA file of a name: `nano/canny`, `nano/comic`, `comic.safetensors`."""
    bare = name.removeprefix("nano/").removesuffix(".safetensors")
    found = [path for path in ADAPTERS.glob("*") if path.stem == bare]
    return found[0] if found else None


def _name(relative: Path) -> str:
    return (relative.with_suffix("") if relative.suffix == ".yaml" else relative).as_posix()
