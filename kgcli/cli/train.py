"""`kg pretrain`, `kg align`, `kg instruct` and `kg base ...`, one table of commands that train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(help="Path, or name of a shipped recipe (see kg ls).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="As in optim.lr=1e-4.", show_default=False)
]
Resume = Annotated[str, typer.Option("--resume", help="auto (newest checkpoint, else fresh), true, none, or its path.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check all that a run checks, print sizes, train nothing.")]

# Stage -> what its command's help says. The paper's three are commands of their own, the others are below `kg base`.
PAPER = {
    "pretrain": "Stage 1: teach the language model to read text and images.",
    "align": "Stage 2: teach AlignerNet the language of CLIP, on text alone.",
    "instruct": "Stage 3: learn to generate what a prompt with images says.",
}
BASE = {
    "vae": "The autoencoder between images and latents.",
    "sharpen": "The autoencoder's decoder against a patch discriminator: sharper images of the same latents.",
    "clip": "The pair of vision tower and text encoder.",
    "unet": "The text-conditional U-Net.",
    "judge": "The recognisers of `kg eval nano`; nothing that generates is trained with them.",
    "eval_clip": "The CLIP of the nano benchmarks; nothing that generates is trained with it.",
    "eval_dino": "The self-supervised ViT of the nano benchmarks; nothing that generates is trained with it.",
    "controlnet": "A ControlNet of a decoder that follows canny edges.",
    "lora": "A LoRA of a decoder, in the style of its data.",
}


def stage_names() -> list[str]:
    """Return the names of all stages that a command trains."""
    return [*PAPER, *BASE]


def _command(stage: str) -> Callable[..., None]:
    """Return the command that trains a stage."""

    def command(
        recipe: RecipeName, overrides: Overrides = None, resume: Resume = "auto", dry_run: DryRun = False
    ) -> None:
        from kgcli.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [], stage=stage)
        from kgcli.training.loop import train  # torch loads here, after the recipe is known to be sound

        print(train(checked, resume=resume, dry_run=dry_run))

    return command


def _app(table: dict[str, str]) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    for stage, text in table.items():
        app.command(stage, help=text)(_command(stage))
    return app


pretrain_app, align_app, instruct_app = (_app({stage: text}) for stage, text in PAPER.items())
base_app = _app(BASE)


@base_app.callback()
def base() -> None:
    """Train the parts the nano model starts from, its adapters, and the recognisers of its evaluation."""
