"""The registry of training stages: a stage's module is imported when a recipe needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TypeVar

from kgcli.errors import ConfigError
from kgcli.recipe import Recipe
from kgcli.training.stages.base import Setup, Stage

AnySetup = TypeVar("AnySetup", bound=Setup)

# Stage -> module of this folder and its class.
STAGES = {
    "vae": "vae:VaeStage",
    "sharpen": "sharpen:SharpenStage",
    "clip": "clip:ClipStage",
    "unet": "unet:UnetStage",
    "pretrain": "kosmosg:PretrainStage",
    "align": "align:AlignStage",
    "align_images": "align:AlignImagesStage",
    "instruct": "kosmosg:InstructStage",
    "judge": "nano_recognisers:RecogniserStage",
    "eval_clip": "nano_evaluators:EvalClipStage",
    "eval_dino": "nano_evaluators:EvalDinoStage",
    "controlnet": "adapters:ControlNetStage",
    "lora": "adapters:LoraStage",
}


def find_stage(name: str) -> type[Stage]:
    """Return the class of a stage.

    Raises: ConfigError for a stage that does not exist.
    """
    if name not in STAGES:
        raise ConfigError(f"there is no stage {name!r}; the stages are {', '.join(STAGES)}")
    module, _, attribute = STAGES[name].partition(":")
    found: type[Stage] = getattr(import_module(f"kgcli.training.stages.{module}"), attribute)
    return found


def make_stage(recipe: Recipe, texts: Callable[[int, int], list[str]]) -> Stage:
    """Build the stage of a recipe; `texts(num, seed)` gives sentences of its data, for tokenizers.

    Raises: ConfigError, MissingError: a part or option is wrong, or a folder of init_from is missing.
    """
    setup = make_setup(recipe, texts, Setup)
    stage = find_stage(recipe.stage)(setup)
    check_taken(setup, setup.found)
    return stage


def check_taken(setup: Setup, taken: Iterable[str]) -> None:
    """Check that a stage, once built, took every part of `init_from`: a misspelt one would be left out without a word.

    Raises: ConfigError.
    """
    taken = list(taken)
    for part in setup.init_from:
        if part not in taken:
            raise ConfigError(
                f"init_from.{part}: stage {setup.stage} has no such part to start from; "
                f"with this recipe it takes {', '.join(taken) or 'none'}"
            )


def make_setup(recipe: Recipe, texts: Callable[[int, int], list[str]], kind: type[AnySetup]) -> AnySetup:
    """Return the parts of a recipe that a stage is built from."""
    return kind(
        stage=recipe.stage,
        init_from=recipe.init_from,
        parts=recipe.parts,
        options=recipe.options,
        model=recipe.model,
        image_size=recipe.image_size,
        seed=recipe.seed,
        texts=texts,
        train=recipe.train,
        lora=recipe.lora,
    )
