"""`kg generate` and `kg edit`: check everything, generate, write each image as it is done, print it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kgcli import runtime
from kgcli.cli.failure import show
from kgcli.cli.logs import set_up_logs
from kgcli.cli.options import GenerateFlags, takes_flags
from kgcli.cli.plan import Plan, plan_prompt
from kgcli.errors import OutputError, PartialBatchError
from kgcli.inference.adapters import Adapters
from kgcli.inference.metadata import describe
from kgcli.inference.output import write_picture
from kgcli.inference.request import edit_prompt

if TYPE_CHECKING:
    from kgcli.inference.model import Model

generate_app = typer.Typer(rich_markup_mode=None, add_completion=False)
edit_app = typer.Typer(rich_markup_mode=None, add_completion=False)


def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text with <image:PATH> in it.", show_default=False)] = None,
    *,
    flags: GenerateFlags,
) -> None:
    """Make pictures of a prompt with pictures in it.

    An image tag stands anywhere, any number of times: <image:cat.png>, <image:cat.png|weight=0.8,fit=crop>,
    or <image:-1> for the first --image. A plain < is written \\<. An image that is not square is padded with
    white (fit=pad), cut (fit=crop) or squeezed (fit=stretch); the model says which is the default, mostly pad.
    """
    set_up_logs(quiet=flags.quiet, verbose=flags.verbose, offline=flags.offline)
    plan = plan_prompt(prompt, flags)
    for label, error in plan.failures:
        show(error, prefix=f"{label}: ")
    if plan.jobs:
        if flags.seed is None and flags.from_ is None and not flags.quiet:
            print(f"seed {plan.jobs[0].request.seed}", file=sys.stderr)
        import kgcli.engine as engine  # torch loads here, after all is known to be sound

        model = load(plan, flags)
        with progress(plan, flags) as on_step:
            images = engine.generate(model, [job.request for job in plan.jobs], on_step)
            for job, (request, image) in zip(plan.jobs, images, strict=True):
                metadata = describe(request, plan.model, model.device, model.dtype, plan.quantize)
                try:
                    write_picture(job.path, image, None if flags.no_metadata else metadata, overwrite=job.overwrite)
                except OutputError as error:
                    if flags.batch is None:
                        raise
                    plan.failures.append((str(job.path), error))
                    show(error)
                    continue
                print(json.dumps({"path": str(job.path), **metadata}) if flags.json else job.path, flush=True)
    if plan.failures:
        raise PartialBatchError(f"{len(plan.failures)} of the batch's lines failed; all others are done")


def edit(
    image: Annotated[str, typer.Argument(help="The picture to edit.", show_default=False)],
    instruction: Annotated[str, typer.Argument(help="What to change, as in: add a hat.", show_default=False)],
    *,
    flags: GenerateFlags,
) -> None:
    """Carry out an instruction on a picture. One that is not square is cut about its centre."""
    generate(edit_prompt(image, instruction), flags=flags)


generate_app.command()(takes_flags(GenerateFlags)(generate))
edit_app.command()(takes_flags(GenerateFlags, without=("batch", "from_", "allow_download"))(edit))


def load(plan: Plan, flags: GenerateFlags) -> Model:
    """Load the model of a plan as the flags say."""
    plain = plan.adapters == Adapters() and (flags.offload, plan.quantize) == ("none", "none")
    if runtime.own_process and plain and Path(plan.model.decoder).is_dir():
        from kgcli.inference.light_imports import import_diffusers

        import_diffusers()
    import kgcli.engine as engine

    return engine.load(
        plan.model,
        device=flags.device,
        dtype=plan.dtype if flags.dtype == "auto" else flags.dtype,
        offload=flags.offload,
        quantize=plan.quantize,
        offline=flags.offline,
    )


@contextmanager
def progress(plan: Plan, flags: GenerateFlags) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr where that is a terminal; what it gives is called after each step."""
    if flags.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        total = sum(job.request.sampling.num_inference_steps or 0 for job in plan.jobs)
        task = bar.add_task("", total=total)
        yield lambda step: bar.advance(task)
