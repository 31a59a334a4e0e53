"""`kg generate` and `kg edit`: check everything, generate, write each image as it is done, print it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kgcli.cli.failure import show
from kgcli.cli.logs import set_up_logs
from kgcli.cli.options import GenerateFlags, takes_flags
from kgcli.cli.parsing import complete
from kgcli.cli.parsing.command import App
from kgcli.cli.plan import Job, Plan, plan_prompt
from kgcli.errors import OutputError, PartialBatchError
from kgcli.inference.adapters.named import Adapters
from kgcli.inference.output import write_image
from kgcli.inference.request import edit_prompt

if TYPE_CHECKING:
    from PIL import Image

    from kgcli.inference.model import Model
    from kgcli.inference.request import Request

generate_app = App()
edit_app = App()


def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text with <image:PATH> tags.", show_default=False)] = None,
    *,
    flags: GenerateFlags,
) -> None:
    """Generate images from a prompt of interleaved text and images.

    Image tags may stand anywhere: <image:cat.png>, <image:cat.png|weight=0.8,fit=crop>, or <image:-1> for the
    first --image. Write a plain < as \\<. An image that is not square is padded with white (fit=pad), cropped
    (fit=crop) or stretched (fit=stretch); the default is set by the model, usually pad.

    Example: kg generate "a <image:cat.png> in Minecraft" -s 1 2 3 -o out/
    """
    set_up_logs(quiet=flags.quiet, verbose=flags.verbose, offline=flags.offline)
    plan = plan_prompt(prompt, flags)
    for label, error in plan.failures:
        show(error, prefix=f"{label}: ")
    if plan.jobs:
        if flags.seed is None and flags.from_ is None and not flags.quiet:
            print(f"seed {plan.jobs[0].request.seed}", file=sys.stderr)
        model = load(plan, flags)  # torch loads here, after all checks
        import kgcli.engine as engine

        with progress(plan.jobs, flags) as on_step:
            images = engine.generate(model, [job.request for job in plan.jobs], on_step, flags.batch_size)
            for job, (request, image) in zip(plan.jobs, images, strict=True):
                try:
                    write_job(job, request, image, model, flags)
                except OutputError as error:
                    if flags.batch is None:
                        raise
                    plan.failures.append((str(job.path), error))
                    show(error)
    if plan.failures:
        raise PartialBatchError(f"{len(plan.failures)} of the batch's lines failed; the others are done")


def edit(
    image: Annotated[
        str, typer.Argument(help="Image file to edit.", show_default=False, autocompletion=complete.images)
    ],
    instruction: Annotated[str, typer.Argument(help="Change to make, such as: add a hat.", show_default=False)],
    *,
    flags: GenerateFlags,
) -> None:
    """Edit an image by an instruction; an image that is not square is cropped to its centre.

    Example: kg edit cat.png "add a hat" -o out.png
    """
    generate(edit_prompt(image, instruction), flags=flags)


generate_app.command()(takes_flags(GenerateFlags)(generate))
edit_app.command()(takes_flags(GenerateFlags, without=("batch", "from_", "allow_download"))(edit))


def write_job(job: Job, request: Request, image: Image.Image, model: Model, flags: GenerateFlags) -> None:
    """Write the image of a job and print its path, or its metadata with --json.

    Raises: OutputError.
    """
    metadata = model.describe(request)
    write_image(job.path, image, None if flags.no_metadata else metadata, overwrite=job.overwrite)
    print(json.dumps({"path": str(job.path), **metadata}) if flags.json else job.path, flush=True)


def load(plan: Plan, flags: GenerateFlags) -> Model:
    """Load the model of a plan with the flags' device, precision and offload; says so on a terminal."""
    if not flags.quiet and sys.stderr.isatty():
        print("loading the model" + (" (the first image is slow: --compile)" if plan.compile else ""), file=sys.stderr)
    plain = plan.adapters == Adapters() and (flags.offload, plan.quantize, plan.compile) == ("none", "none", False)
    import kgcli.engine as engine

    engine.prepare(plan.model, plan.threads, light=plain and Path(plan.model.decoder).is_dir())
    return engine.load(
        plan.model,
        device=flags.device,
        dtype=plan.dtype if flags.dtype == "auto" else flags.dtype,
        offload=flags.offload,
        quantize=plan.quantize,
        compile=plan.compile,
        offline=flags.offline,
    )


@contextmanager
def progress(jobs: Sequence[Job], flags: GenerateFlags) -> Iterator[Callable[[int], None] | None]:
    """Show a progress bar on a terminal; yields the callback of each step of each image."""
    if flags.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        total = sum(job.request.sampling.num_inference_steps or 0 for job in jobs)
        task = bar.add_task("", total=total)
        yield lambda step: bar.advance(task)
