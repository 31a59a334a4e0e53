"""`kg pretrain`, `kg align`, `kg instruct` and `kg base ...`: one table of training commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from kgcli.cli.parsing import complete
from kgcli.cli.parsing.command import App
from kgcli.runtime import environment_shard

RecipeName = Annotated[
    str,
    typer.Argument(
        help="Recipe file, or name of a shipped recipe (see kg ls).",
        show_default=False,
        autocompletion=complete.recipes,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE ...]", help="Recipe overrides, such as optim.lr=1e-4.", show_default=False),
]
Resume = Annotated[
    str,
    typer.Option(
        "--resume",
        help="Checkpoint to resume: auto (newest, else start fresh), true (newest, required), none or a path.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check all that a run checks; print sizes, memory, disk and work, train nothing."),
]
Tflops = Annotated[
    float | None,
    typer.Option(
        min=1e-6,
        help="For the time estimate of --dry-run: what all processes reach together, in TFLOP/s; "
        "default: the rate in the run's own log.",
        show_default=False,
    ),
]

# Stage -> help text of its command. The paper's three are commands of their own, the others are below `kg base`.
PAPER = {
    "pretrain": "Stage 1: train the multimodal language model on text and images.",
    "align": "Stage 2: align AlignerNet with the CLIP text encoder, on captions alone.",
    "instruct": "Stage 3: learn to generate images from interleaved prompts.",
}
BASE = {
    "vae": "Train the VAE.",
    "sharpen": "Train the VAE's decoder against a patch discriminator: sharper images of the same latents.",
    "clip": "Train the CLIP vision tower and text encoder.",
    "unet": "Train the text-conditional U-Net.",
    "align_images": "Train a KOSMOS-G to condition on images as on words for them.",
    "judge": "Train the recognisers of `kg eval nano`; used for evaluation only.",
    "eval_clip": "Train the CLIP of the nano benchmarks; used for evaluation only.",
    "eval_dino": "Train the self-supervised ViT of the nano benchmarks; used for evaluation only.",
    "controlnet": "Train a canny-edge ControlNet of a decoder.",
    "lora": "Train a style LoRA of a decoder.",
}


def stage_names() -> list[str]:
    """Return the names of all stages with a command."""
    return [*PAPER, *BASE]


def _command(stage: str) -> Callable[..., None]:
    """Return the command that trains a stage."""

    def command(
        recipe: RecipeName,
        overrides: Overrides = None,
        resume: Resume = "auto",
        dry_run: DryRun = False,
        tflops: Tflops = None,
    ) -> None:
        from kgcli.errors import MissingError
        from kgcli.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [], stage=stage)
        from kgcli import engine  # torch loads here, after the recipe is checked

        if not dry_run:
            result = engine.train(checked, resume=resume)
            if environment_shard()[0] == 0:
                print(result)
            return
        plan = engine.plan_training(checked, resume=resume, tflops=tflops)
        print(plan)
        if plan.missing:
            raise MissingError(f"{len(plan.missing)} part(s) of this recipe are not on this machine: listed above")

    return command


def _app(table: dict[str, str]) -> typer.Typer:
    app = App()
    for stage, text in table.items():
        command = stage if stage in PAPER else f"base {stage}"
        app.command(stage, help=f"{text}\n\nExample: kg {command} nano/{stage}")(_command(stage))
    return app


pretrain_app, align_app, instruct_app = (_app({stage: text}) for stage, text in PAPER.items())
base_app = _app(BASE)


@base_app.callback()
def base() -> None:
    """Train the nano model's base parts, its adapters, and the models of its evaluation."""


chain_app = App()


@chain_app.command()
def train(
    chain: Annotated[
        str,
        typer.Argument(
            help="Name of a chain of recipes: nano, or smoke (seconds).",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    show: Annotated[bool, typer.Option("--list", help="Print what is done and what is next; train nothing.")] = False,
) -> None:
    """Run the recipes that make a model in order; finished ones are skipped, an interrupted one is resumed.

    Overrides are for all recipes, as in: kg train nano precision=bf16. Each recipe also runs alone, with kg base,
    kg pretrain, kg align and kg instruct.

    Example: kg train nano --list
    """
    from kgcli.training.chains import describe_chain, load_chain

    links = load_chain(chain, overrides)
    if show:
        print(describe_chain(links))
        return
    from kgcli import engine  # torch loads here, after all recipes are known to be sound

    for link in links:
        if not link.is_done:
            print(describe_chain(links), file=sys.stderr)
            engine.train(link.recipe)
    print(describe_chain(links))
