"""The data of DreamBench: its subjects and prompts, and checks of the photo folder.

Source: DreamBooth (arXiv:2208.12242), github.com/google/dreambooth, `dataset/`; input photos as in the published
evaluation of KOSMOS-G (arXiv:2310.02992).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from kgcli.data.entries import data_files
from kgcli.errors import MissingError
from kgcli.files import sha256

HOW_TO_GET = "git clone https://github.com/google/dreambooth, then --data dreambooth/dataset"
NUM_PHOTOS = 158
PHOTOS_PER_SUBJECT = range(4, 7)
PROMPTS_FILE = "prompts_and_classes.txt"
LIVE_NOUNS = ("cat", "dog")
ATTRIBUTES = ("red", "purple", "shiny", "wet", "cube shaped")
_SHOWN = 5  # names listed per fault

# subject -> (class noun, number of the input photo)
SUBJECTS = {
    "backpack": ("backpack", "02"),
    "backpack_dog": ("backpack", "02"),
    "bear_plushie": ("stuffed animal", "03"),
    "berry_bowl": ("bowl", "02"),
    "can": ("can", "01"),
    "candle": ("candle", "02"),
    "cat": ("cat", "04"),
    "cat2": ("cat", "02"),
    "clock": ("clock", "03"),
    "colorful_sneaker": ("sneaker", "01"),
    "dog": ("dog", "02"),
    "dog2": ("dog", "02"),
    "dog3": ("dog", "05"),
    "dog5": ("dog", "00"),
    "dog6": ("dog", "02"),
    "dog7": ("dog", "01"),
    "dog8": ("dog", "04"),
    "duck_toy": ("toy", "01"),
    "fancy_boot": ("boot", "02"),
    "grey_sloth_plushie": ("stuffed animal", "04"),
    "monster_toy": ("toy", "04"),
    "pink_sunglasses": ("glasses", "04"),
    "poop_emoji": ("toy", "00"),
    "rc_car": ("toy", "03"),
    "red_cartoon": ("cartoon", "00"),
    "robot_toy": ("toy", "00"),
    "shiny_sneaker": ("sneaker", "01"),
    "teapot": ("teapot", "04"),
    "vase": ("vase", "02"),
    "wolf_plushie": ("stuffed animal", "04"),
}
# Text after "a NOUN" in prompts other than attributes. All subjects share the first ten.
SHARED_PROMPTS = (
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
)
OBJECT_PROMPTS = (
    "with a wheat field in the background",
    "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background",
    "floating on top of water",
    "floating in an ocean of milk",
    "on top of green grass with sunflowers around it",
    "on top of a mirror",
    "on top of the sidewalk in a crowded street",
    "on top of a dirt road",
    "on top of a white rug",
)
LIVE_PROMPTS = (
    "wearing a red hat",
    "wearing a santa hat",
    "wearing a rainbow scarf",
    "wearing a black top hat and a monocle",
    "in a chef outfit",
    "in a firefighter outfit",
    "in a police outfit",
    "wearing pink glasses",
    "wearing a yellow shirt",
    "in a purple wizard outfit",
)


@dataclass(frozen=True)
class DreamBenchData:
    """A folder of the photos."""

    folder: Path
    photos: dict[str, tuple[str, ...]]  # subject -> photos below the folder
    sha256: str  # over all photos


def input_photo(subject: str) -> str:
    """Return the input photo of a subject, relative to the data folder."""
    return f"{subject}/{SUBJECTS[subject][1]}.jpg"


def category_of(subject: str) -> str:
    """Return `live` for cats and dogs, else `object`."""
    return "live" if SUBJECTS[subject][0] in LIVE_NOUNS else "object"


def open_dreambench(folder: Path) -> DreamBenchData:
    """Open and check the `dataset` folder of a checkout (or the checkout).

    Raises: MissingError with the faults and the source of the data.
    """
    folder = folder.expanduser().resolve()
    if (folder / "dataset").is_dir():
        folder = folder / "dataset"
    if not folder.is_dir():
        raise MissingError(f"the folder {folder} of DreamBench photos does not exist; get them: {HOW_TO_GET}")
    photos = {name: _photos_of(folder, name) for name in SUBJECTS}
    faults = _faults(folder, photos)
    if faults:
        raise MissingError(f"{folder} is not the DreamBench data: {'; '.join(faults)}. Get it: {HOW_TO_GET}")
    digest = hashlib.sha256()
    for path in (path for paths in photos.values() for path in paths):
        digest.update(f"{path} {sha256(folder / path)}\n".encode())
    return DreamBenchData(folder, photos, digest.hexdigest())


def _photos_of(folder: Path, subject: str) -> tuple[str, ...]:
    if not (folder / subject).is_dir():
        return ()
    return tuple(f"{subject}/{path.name}" for path in data_files(folder / subject, suffixes=(".jpg",)))


def _faults(folder: Path, photos: dict[str, tuple[str, ...]]) -> list[str]:
    """Describe all faults of the data."""
    absent = [name for name, paths in photos.items() if not paths]
    faults = [_listed(f"{len(absent)} of {len(SUBJECTS)} subjects have no photos", absent)] if absent else []
    odd = [f"{name} ({len(paths)})" for name, paths in photos.items() if paths and len(paths) not in PHOTOS_PER_SUBJECT]
    if odd:
        faults.append(_listed("subjects with other than 4 to 6 photos", odd))
    inputs = [input_photo(name) for name, paths in photos.items() if paths and input_photo(name) not in paths]
    if inputs:
        faults.append(_listed("input photos are missing", inputs))
    num = sum(map(len, photos.values()))
    if num != NUM_PHOTOS:
        faults.append(f"{num} photos (.jpg) instead of {NUM_PHOTOS}")
    damaged = [path for paths in photos.values() for path in paths if not _is_image(folder / path)]
    if damaged:
        faults.append(_listed("not images or damaged", damaged))
    return [*faults, *_faults_of_prompts(folder / PROMPTS_FILE)]


def _faults_of_prompts(path: Path) -> list[str]:
    """Compare the folder's own table of nouns and prompts, if present, with the built-in one."""
    if not path.is_file():
        return []
    text = path.read_text("utf-8", errors="replace")
    nouns = dict(re.findall(r"^(\w+),([\w ]+?)\s*$", text, re.MULTILINE))
    nouns.pop("subject_name", None)
    prompts = [" ".join(one.split()) for one in re.findall(r"^'(a [^']*)'\.format", text, re.MULTILINE)]
    expected = [prompt_text("{0} {1}", kind, index) for kind in ("object", "live") for index in range(25)]
    if nouns == {name: noun for name, (noun, _) in SUBJECTS.items()} and prompts == expected:
        return []
    return [f"{PROMPTS_FILE} differs from the benchmark in class nouns or prompts"]


def prompt_text(noun: str, category: str, prompt: int) -> str:
    """Return a prompt of DreamBench with its class noun."""
    if prompt >= 20:
        return f"a {ATTRIBUTES[prompt - 20]} {noun}"
    return f"a {noun} {context_of(category, prompt)}"


def context_of(category: str, prompt: int) -> str:
    """Return the text after the noun in a prompt other than an attribute."""
    return (SHARED_PROMPTS + (LIVE_PROMPTS if category == "live" else OBJECT_PROMPTS))[prompt]


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path, formats=("JPEG",)) as image:
            image.load()
        return True
    except (OSError, SyntaxError, ValueError):  # raised by Pillow for damaged files
        return False


def _listed(title: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{title} ({', '.join(names[:_SHOWN])}{more})"
