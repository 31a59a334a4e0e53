"""Dependencies of recipes, and the training compute of runs.

A recipe's init_from names folders; a missing folder is made by the shipped recipe that writes it, which may have
dependencies in turn.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kgcli.errors import ConfigError, MissingError
from kgcli.files import recipes_folder
from kgcli.recipe import Recipe, load_recipe
from kgcli.training.chains import check_size

RUNS = "runs"  # where shipped recipes write
FINAL = "final"  # the result inside a run folder
SCALES = ("nano", "smoke")
DECODER = "nano/unet_many"  # the recipe of the image decoder


@dataclass(frozen=True)
class Compute:
    """Training compute."""

    samples: int
    minutes: float  # wall clock
    cpu_minutes: float  # of the training process; 0 if not recorded

    def __add__(self, other: Compute) -> Compute:
        return Compute(self.samples + other.samples, self.minutes + other.minutes, self.cpu_minutes + other.cpu_minutes)


def recipe_at(name: str, scale: str, runs: Path, seed: int = 0) -> Recipe:
    """Load a nano recipe at a scale, writing below `runs`; seeds other than 0 have their own folders.

    At scale "smoke" an ablation is the smoke recipe of its stage with the ablation's changes.
    """
    recipe = _place(_scaled(name, scale), runs)
    if seed == 0:
        return recipe
    data = recipe.data.model_copy(update={"seed": seed})
    return recipe.model_copy(update={"seed": seed, "data": data, "output_dir": f"{recipe.output_dir}-seed{seed}"})


def pending(recipe: Recipe, scale: str, runs: Path) -> list[Recipe]:
    """Return the recipes that must still run for a recipe's result, itself included, in order.

    Raises: MissingError for a folder that no shipped recipe makes, ConfigError for a run at another image size.
    """
    makers = {made.output_dir: made for made in (_place(one, runs) for one in _shipped(scale))}
    found: dict[str, Recipe] = {}
    _collect(recipe, makers, found)
    return list(found.values())


def result_of(recipe: Recipe) -> Path:
    """Return the folder of a recipe's result."""
    return Path(recipe.output_dir) / FINAL


def decoder_of(scale: str, runs: Path) -> Path:
    """Return the image decoder's folder of a scale."""
    return result_of(recipe_at(DECODER, scale, runs))


def compute_of(run: Path) -> Compute:
    """Return the compute of one run, from its recipe and metrics; 0 minutes without metrics.

    Raises: MissingError.
    """
    recipe = _recipe_in(run)
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text("utf-8").splitlines() if metrics.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    minutes, before = 0.0, 0
    for row in rows:
        minutes += (row["step"] - before) * recipe.data.batch_size / row["samples_per_second"] / 60
        before = row["step"]
    cpu_minutes = sum(row.get("cpu_seconds", 0.0) for row in rows) / 60
    return Compute(recipe.steps * recipe.data.batch_size, minutes, cpu_minutes)


def compute_in_all(run: Path) -> Compute:
    """Return the compute of a run and its dependencies, each counted once."""
    total = Compute(0, 0.0, 0.0)
    for folder in dict.fromkeys(_ancestry(run)):
        total += compute_of(folder)
    return total


def _ancestry(run: Path) -> Iterator[Path]:
    yield run.resolve()
    for source in _recipe_in(run).init_from.values():
        parent = Path(source).parent
        if (parent / "recipe.yaml").is_file():
            yield from _ancestry(parent)


def _recipe_in(run: Path) -> Recipe:
    path = run / "recipe.yaml"
    if not path.is_file():
        raise MissingError(f"{run} has no recipe.yaml; it is not a run folder of kg")
    return load_recipe(str(path))


@functools.cache
def _scaled(name: str, scale: str) -> Recipe:
    if scale not in SCALES:
        raise ConfigError(f"--scale is {scale}; it must be {' or '.join(SCALES)}")
    recipe = load_recipe(name)
    if scale == "nano":
        return recipe
    small = load_recipe(f"smoke/{recipe.stage}")
    if name.startswith("nano/"):
        return small
    sources = {part: _small_source(folder) for part, folder in recipe.init_from.items()}
    settings = {key: getattr(recipe.data, key) for key in ("kinds", "drop_entity_text", "keep_background")}
    return small.model_copy(
        update={
            "output_dir": recipe.output_dir.replace(f"{RUNS}/", f"{RUNS}/smoke/", 1),
            "init_from": sources,
            "parts": recipe.parts,
            "data": small.data.model_copy(update=settings),
        }
    )


def _small_source(folder: str) -> str:
    """Return the folder of the smoke recipe that stands for the one that makes `folder`."""
    name = folder.removeprefix(f"{RUNS}/nano/").removesuffix(f"/{FINAL}")
    return f"{RUNS}/smoke/{load_recipe(f'nano/{name}').stage}/{FINAL}"


@functools.cache
def _shipped(scale: str) -> tuple[Recipe, ...]:
    return tuple(load_recipe(str(path)) for path in sorted((recipes_folder() / scale).rglob("*.yaml")))


def _place(recipe: Recipe, runs: Path) -> Recipe:
    sources = {part: _moved(folder, runs) for part, folder in recipe.init_from.items()}
    return recipe.model_copy(update={"output_dir": _moved(recipe.output_dir, runs), "init_from": sources})


def _moved(folder: str, runs: Path) -> str:
    return str(runs / folder.removeprefix(f"{RUNS}/")) if folder.startswith(f"{RUNS}/") else folder


def _collect(recipe: Recipe, makers: dict[str, Recipe], found: dict[str, Recipe]) -> None:
    check_size(recipe)
    if recipe.output_dir in found or result_of(recipe).is_dir():
        return
    for part, source in recipe.init_from.items():
        maker = makers.get(str(Path(source).parent))
        if maker is not None:
            check_size(maker)
        if Path(source).is_dir():
            continue
        if maker is None:
            raise MissingError(f"{recipe.output_dir} starts from {part} in {source}, which no shipped recipe makes")
        _collect(maker, makers, found)
    found[recipe.output_dir] = recipe
