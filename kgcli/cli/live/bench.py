"""`kg bench`: the speed of this machine as a card on stderr and a line of JSON on stdout."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from kgcli import runtime
from kgcli.cli.logs import set_up_logs
from kgcli.cli.options import GenerateFlags, flag, takes_flags
from kgcli.cli.parsing.command import App
from kgcli.cli.plan import open_session
from kgcli.cli.train import Overrides, RecipeName
from kgcli.config import MAX_BATCH
from kgcli.errors import UsageError
from kgcli.inference.batching import AUTO, auto_size, parse_size
from kgcli.inference.request import make_request
from kgcli.weights.folder import open_model

if TYPE_CHECKING:
    from kgcli.speed.card import Card

app = App()
PROMPT = "a <image:nano/cat.png> in the snow"
Text = Annotated[str, typer.Argument(help="Text with <image:PATH> tags.")]
Repeats = Annotated[int, flag("--repeats", help="Rounds that are timed, 1 to 1000; default: 5.")]
MAX_REPEATS = 1000
MAX_STEPS = 10_000
NOT_ENCODING = ("decoder", "sampling", "negative_prompt", "offload", "compile")
NOT_MEASURED = (
    *("out", "num_images", "seed", "images", "batch", "from_", "allow_download"),
    *("json", "no_metadata", "overwrite", "skip_existing", "lora", "controlnet", "controlnet_model", "map_model"),
)


@app.callback()
def bench() -> None:
    """Measure the speed of this machine; a card on stderr, one line of JSON on stdout."""


@app.command()
@takes_flags(GenerateFlags, without=NOT_MEASURED)
def generate(prompt: Text = PROMPT, repeats: Repeats = 5, *, flags: GenerateFlags) -> None:
    """Measure images per second: one batch of --batch-size images, against diffusers' own pipeline.

    Example: kg bench generate --batch-size 8 --steps 10
    """
    from kgcli.cli.generate import load

    _start(flags, repeats)
    plan = open_session(flags)
    first = make_request(plan.model, prompt, negative_prompt=flags.negative_prompt or "", sampling=flags.sampling)
    from kgcli import engine

    engine.prepare(plan.model)
    from kgcli.speed.generating import bench_generate  # torch loads here, and diffusers as it is

    model = load(plan, flags)
    width, height = first.sampling.size
    rows = auto_size(width * height, model.device) if flags.batch_size == AUTO else int(flags.batch_size)
    with runtime.memory_errors():
        _show(bench_generate(model, [replace(first, seed=seed) for seed in range(rows)], repeats), flags.quiet)


@app.command()
@takes_flags(GenerateFlags, without=(*NOT_MEASURED, *NOT_ENCODING))
def encode(prompt: Text = PROMPT, repeats: Repeats = 5, *, flags: GenerateFlags) -> None:
    """Measure prompts per second: a batch of --batch-size prompts, against the model's forward pass alone.

    Example: kg bench encode --batch-size 8
    """
    _start(flags, repeats)
    rows = MAX_BATCH if flags.batch_size == AUTO else parse_size(flags.batch_size)
    runtime.check_quantize(flags.quantize or "none", flags.device)
    folder = open_model(flags.model, offline=flags.offline, with_decoder=False)
    request = make_request(folder, prompt)
    from kgcli import engine

    engine.prepare(folder)
    from kgcli.inference.encoder import load_encoder
    from kgcli.speed.encoding import bench_encode

    with runtime.memory_errors():
        encoder = load_encoder(folder, device=flags.device, dtype=flags.dtype, quantize=flags.quantize or "none")
        _show(bench_encode(encoder, request, rows, repeats, folder.name), flags.quiet)


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    steps: Annotated[int, flag("-n", "--steps", help="Steps that are timed, 1 to 10000; default: 10.")] = 10,
    quiet: Annotated[bool, flag("-q", "--quiet", help="Print the line of JSON and errors only.")] = False,
) -> None:
    """Measure samples per second of a recipe's training loop; its run folder is left as it is.

    Example: kg bench train smoke/pretrain -n 20
    """
    from kgcli.recipe import load_recipe

    if not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"--steps is {steps}; it must be from 1 to {MAX_STEPS}")
    checked = load_recipe(recipe, overrides or [])
    set_up_logs(quiet=quiet)
    from kgcli.speed.training import bench_train

    with runtime.memory_errors():
        _show(bench_train(checked, steps), quiet)


def _start(flags: GenerateFlags, repeats: int) -> None:
    set_up_logs(quiet=flags.quiet, verbose=flags.verbose, offline=flags.offline)
    if not 1 <= repeats <= MAX_REPEATS:
        raise UsageError(f"--repeats is {repeats}; it must be from 1 to {MAX_REPEATS}")


def _show(card: Card, quiet: bool) -> None:
    """Print a result."""
    if not quiet:
        card.show()
    print(card.to_json())
