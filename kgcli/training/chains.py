"""The recipes of a model, in order, with the progress of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kgcli.errors import Checks, ConfigError, MissingError
from kgcli.reading import read_yaml
from kgcli.recipe import RESULT, Recipe, find_maker, load_recipe

STEPS = "checkpoints/step_*"  # of a run folder: its checkpoints
# Chain -> its recipes. The parts of the generator come first, then its evaluation, then adapters.
CHAINS = {
    "nano": (
        "nano/vae",
        "nano/sharpen",
        "nano/clip",
        "nano/unet",
        "nano/unet_many",
        "nano/pretrain",
        "nano/align",
        "nano/align_images",
        "nano/instruct",
        "nano/judge",
        "nano/eval_clip",
        "nano/eval_dino",
        "nano/controlnet",
        "nano/lora",
    ),
    "smoke": ("smoke/vae", "smoke/clip", "smoke/unet", "smoke/pretrain", "smoke/align", "smoke/instruct"),
}


@dataclass(frozen=True)
class Link:
    """One recipe of a chain and its run."""

    name: str
    recipe: Recipe

    @property
    def is_done(self) -> bool:
        """Return True if the run has exported its result."""
        return (Path(self.recipe.output_dir) / "final").is_dir()

    @property
    def state(self) -> str:
        """Return the progress of the run in words."""
        if self.is_done:
            return "done"
        steps = [int(path.name.removeprefix("step_")) for path in Path(self.recipe.output_dir).glob(STEPS)]
        return f"interrupted at step {max(steps)} of {self.recipe.steps}" if steps else "to do"


def load_chain(name: str, overrides: list[str] | None = None) -> list[Link]:
    """Return the recipes of a chain, each with the overrides.

    Raises:
        MissingError: no such chain.
        ConfigError: an override fits no recipe, or a run was made at another image size; several: SeveralErrors.
    """
    if name not in CHAINS:
        raise MissingError(f"there is no chain of recipes {name!r}; the chains are {', '.join(CHAINS)}")
    links = [Link(recipe, load_recipe(recipe, overrides)) for recipe in CHAINS[name]]
    with Checks() as check:
        for link in links:
            check(check_size, link.recipe)
    return links


def check_size(recipe: Recipe) -> None:
    """Check that a run in the recipe's folder has its image size: one of an earlier world has another.

    Raises: ConfigError.
    """
    run = Path(recipe.output_dir)
    _refuse(run, _size_of(run), recipe.image_size)


def check_start(folder: str, image_size: int) -> None:
    """Check that a folder to start from, which a shipped recipe exports, is not of a run at another image size than
    that recipe has: one of an earlier world is. The run that starts may have changed both, to its own `image_size`.

    Raises: ConfigError.
    """
    run = next((run for run in Path(folder).parents if Path(folder).is_relative_to(run / RESULT)), None)
    size = None if run is None else _size_of(run)
    if run is not None and size not in (None, image_size) and (maker := find_maker(folder)) is not None:
        _refuse(run, size, load_recipe(str(maker)).image_size)


def _size_of(run: Path) -> int | None:
    """Return the image size of the run in a folder, pixels; None if there is none. Raises: ConfigError."""
    path = run / "recipe.yaml"
    made = read_yaml(path, error=ConfigError) if path.is_file() else None
    size: int | None = made.get("image_size") if isinstance(made, dict) else None
    return size


def _refuse(run: Path, size: int | None, expected: int) -> None:
    if size not in (None, expected):
        raise ConfigError(
            f"{run} holds a run at {size} px, its recipe makes images of {expected} px; move the folder away"
        )


def describe_chain(links: list[Link]) -> str:
    """Return a line for each recipe with its state, and which comes next."""
    width = max(len(link.name) for link in links)
    lines = [f"{place:2}  {link.name:{width}}  {link.state}" for place, link in enumerate(links, start=1)]
    following = next((link for link in links if not link.is_done), None)
    return "\n".join([*lines, f"next: {following.name}" if following else "all done"])
