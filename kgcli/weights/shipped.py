"""Files shipped with the package: recipes, example images and the default model, found by name."""

from __future__ import annotations

import difflib
import itertools
import re
from pathlib import Path

from kgcli.errors import MissingError
from kgcli.files import PACKAGE, recipes_folder

DEFAULT_MODEL = PACKAGE / "nano" / "model"
DEFAULT_NAME = "nano"
ADAPTERS = PACKAGE / "nano" / "adapters"  # of the default model's decoder: ControlNet folders and LoRA files
RECOGNISERS = PACKAGE / "nano" / "judges"  # of nano evaluation
EVALUATORS = PACKAGE / "nano" / "evaluators"  # of nano evaluation: the extractors eval_clip and eval_dino
SD15_SIZES = PACKAGE / "decoders" / "sd15"  # config.json files without weights
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# What each example image shows.
EXAMPLE_IMAGES = {
    "nano/cat.png": "an orange cat in the forest",
    "nano/dog.png": "a blue dog with yellow spots in a flower garden",
    "nano/robot.png": "a pink robot with lime stripes in the city",
    "nano/fox.png": "a blue fox with pink stripes in the snow",
    "nano/car.png": "a pink car with blue spots on the beach",
    "nano/teapot.png": "an orange teapot with blue spots on a wooden floor",
    "nano/owl.png": "a red owl with yellow patches in the forest",
}
_FIELD = re.compile(r"# *(Needs|Run|Expect|Full size): ")  # of a recipe's header, after its description
_CLAUSE_END = re.compile(r"; |\. ")
EXAMPLE_DATA = "example-data/"
_SHOWN_SUFFIXES = (".yaml", *IMAGE_SUFFIXES)


def shipped_names() -> list[str]:
    """Return the sorted names of all shipped recipes and images, such as `nano/align` and `nano/cat.png`, without
    the images of example data sets."""
    root = recipes_folder()
    files = (path for path in root.rglob("*") if path.suffix in _SHOWN_SUFFIXES and path.is_file())
    names = sorted(_name(path.relative_to(root)) for path in files)
    return [name for name in names if not (name.startswith(EXAMPLE_DATA) and name.endswith(IMAGE_SUFFIXES))]


def is_image(name: str) -> bool:
    """Tell whether the name of a shipped file is that of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def describe_shipped(name: str) -> str:
    """Return a line about a shipped file: of an image what it shows, of a recipe the first clause of its header."""
    if is_image(name):
        return EXAMPLE_IMAGES.get(name, "")
    lines = get_shipped(name).read_text("utf-8").splitlines()
    header = itertools.takewhile(lambda line: line.startswith("#") and not _FIELD.match(line), lines)
    text = " ".join(line.strip("# ") for line in header)
    return _CLAUSE_END.split(text)[0].rstrip(".")


def find_shipped(name: str) -> Path | None:
    """Find a shipped file by name; the prefix `recipes/` and the suffix `.yaml` are optional."""
    relative = name.replace("\\", "/").removeprefix("./").removeprefix("recipes/")
    if not relative or "\0" in relative or ".." in relative.split("/"):
        return None
    root = recipes_folder()
    for candidate in (root / relative, root / f"{relative}.yaml"):
        try:
            if candidate.is_file() and candidate.resolve().is_relative_to(root.resolve()):
                return candidate
        except OSError:  # longer than a name can be
            return None
    return None


def get_shipped(name: str) -> Path:
    """Return a shipped file by name, as `find_shipped`.

    Raises: MissingError that suggests the nearest name.
    """
    path = find_shipped(name)
    if path is None:
        near = difflib.get_close_matches(name, shipped_names(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else "`kg ls` lists all"
        raise MissingError(f"there is no shipped recipe or image {name}; {hint}")
    return path


def find_image(path: str) -> str:
    """Return the path, `~` expanded, or if it does not exist the shipped image of that name."""
    try:
        if Path(path).exists() or Path(path).is_absolute():
            return path
        if path.startswith("~"):
            return str(Path(path).expanduser())
    except (OSError, RuntimeError, ValueError):  # too long, no such user, or a null byte: for the opener to report
        return path
    shipped = find_shipped(path) if Path(path).suffix.lower() in IMAGE_SUFFIXES else None
    return path if shipped is None else str(shipped)


def find_adapter(name: str) -> Path | None:
    """Find a shipped ControlNet folder or LoRA file by name: `nano/canny`, `nano/comic`, `comic.safetensors`."""
    bare = name.removeprefix("nano/").removesuffix(".safetensors")
    found = [path for path in ADAPTERS.glob("*") if path.stem == bare]
    return found[0] if found else None


def _name(relative: Path) -> str:
    return (relative.with_suffix("") if relative.suffix == ".yaml" else relative).as_posix()
