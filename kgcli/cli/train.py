"""`kg pretrain`, `kg align`, `kg instruct` and `kg base ...`: one engine call with another stage's name."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(help="Path, or name of a shipped recipe (see kg ls).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="As in optim.lr=1e-4.", show_default=False)
]
Resume = Annotated[str, typer.Option("--resume", help="auto (newest checkpoint, else fresh), true, none, or its path.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check all that a run checks, print sizes, train nothing.")]

pretrain_app = typer.Typer(rich_markup_mode=None, add_completion=False)
align_app = typer.Typer(rich_markup_mode=None, add_completion=False)
instruct_app = typer.Typer(rich_markup_mode=None, add_completion=False)
base_app = typer.Typer(rich_markup_mode=None, add_completion=False)


@pretrain_app.command()
def pretrain(recipe: RecipeName, overrides: Overrides = None, resume: Resume = "auto", dry_run: DryRun = False) -> None:
    """Stage 1: teach the language model to read text and pictures."""
    _train("pretrain", recipe, overrides, resume, dry_run)


@align_app.command()
def align(recipe: RecipeName, overrides: Overrides = None, resume: Resume = "auto", dry_run: DryRun = False) -> None:
    """Stage 2: teach AlignerNet the language of CLIP, on text alone."""
    _train("align", recipe, overrides, resume, dry_run)


@instruct_app.command()
def instruct(recipe: RecipeName, overrides: Overrides = None, resume: Resume = "auto", dry_run: DryRun = False) -> None:
    """Stage 3: learn to draw what a prompt with pictures says."""
    _train("instruct", recipe, overrides, resume, dry_run)


@base_app.callback()
def base() -> None:
    """Train the parts the nano model starts from, its adapters, and the judges of its evaluation."""


@base_app.command()
def vae(recipe: RecipeName, overrides: Overrides = None, resume: Resume = "auto", dry_run: DryRun = False) -> None:
    """The autoencoder between pictures and latents."""
    _train("vae", recipe, overrides, resume, dry_run)


@base_app.command()
def clip(recipe: RecipeName, overrides: Overrides = None, resume: Resume = "auto", dry_run: DryRun = False) -> None:
    """The pair of vision tower and text encoder."""
    _train("clip", recipe, overrides, resume, dry_run)


@base_app.command()
def unet(recipe: RecipeName, overrides: Overrides = None, resume: Resume = "auto", dry_run: DryRun = False) -> None:
    """The text-conditional U-Net."""
    _train("unet", recipe, overrides, resume, dry_run)


@base_app.command()
def judge(recipe: RecipeName, overrides: Overrides = None, resume: Resume = "auto", dry_run: DryRun = False) -> None:
    """The judges of `kg eval nano`; nothing that draws is trained with them."""
    _train("judge", recipe, overrides, resume, dry_run)


@base_app.command("eval_clip")
def eval_clip(
    recipe: RecipeName, overrides: Overrides = None, resume: Resume = "auto", dry_run: DryRun = False
) -> None:
    """The CLIP of the nano benchmarks; nothing that draws is trained with it."""
    _train("eval_clip", recipe, overrides, resume, dry_run)


@base_app.command("eval_dino")
def eval_dino(
    recipe: RecipeName, overrides: Overrides = None, resume: Resume = "auto", dry_run: DryRun = False
) -> None:
    """The self-supervised ViT of the nano benchmarks; nothing that draws is trained with it."""
    _train("eval_dino", recipe, overrides, resume, dry_run)


@base_app.command()
def controlnet(
    recipe: RecipeName, overrides: Overrides = None, resume: Resume = "auto", dry_run: DryRun = False
) -> None:
    """A ControlNet of a decoder that follows canny edges."""
    _train("controlnet", recipe, overrides, resume, dry_run)


@base_app.command()
def lora(recipe: RecipeName, overrides: Overrides = None, resume: Resume = "auto", dry_run: DryRun = False) -> None:
    """A LoRA of a decoder that paints in one style."""
    _train("lora", recipe, overrides, resume, dry_run)


def stage_names() -> list[str]:
    """Return the names of all stages that a command trains."""
    apps = (pretrain_app, align_app, instruct_app, base_app)
    commands = [command for app in apps for command in app.registered_commands]
    return [command.name or command.callback.__name__ for command in commands if command.callback is not None]


def _train(stage: str, recipe: str, overrides: list[str] | None, resume: str, dry_run: bool) -> None:
    from kgcli.config import load_recipe

    checked = load_recipe(recipe, overrides or [], stage=stage)
    from kgcli.training.loop import train  # torch loads here, after the recipe is known to be sound

    print(train(checked, resume=resume, dry_run=dry_run))
