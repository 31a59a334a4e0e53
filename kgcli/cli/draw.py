"""Run a plan: load the model, draw, write each picture as it is done, print it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kgcli.cli.failure import show
from kgcli.cli.logs import set_up_logs
from kgcli.cli.options import DrawFlags
from kgcli.cli.plan import Plan, plan_prompt
from kgcli.errors import OutputError, PartialBatchError
from kgcli.inference.metadata import describe
from kgcli.inference.output import write_picture


def run(prompt: str | None, flags: DrawFlags) -> None:
    """Check everything, draw it; stdout gets a path or a JSON object per picture.

    Raises: KgError; PartialBatchError where lines of a batch failed.
    """
    set_up_logs(quiet=flags.quiet, verbose=flags.verbose, offline=flags.offline)
    plan = plan_prompt(prompt, flags)
    for label, error in plan.failures:
        show(error, prefix=f"{label}: ")
    if plan.jobs:
        _draw(plan, flags)
    if plan.failures:
        raise PartialBatchError(f"{len(plan.failures)} of the batch's lines failed; all others are done")


def _draw(plan: Plan, flags: DrawFlags) -> None:
    if flags.seed is None and flags.from_ is None and not flags.quiet:
        print(f"seed {plan.jobs[0].request.seed}", file=sys.stderr)
    from kgcli import engine  # torch loads here, after all is known to be sound

    dtype = plan.dtype if flags.dtype == "auto" else flags.dtype
    model = engine.load(
        plan.model,
        device=flags.device,
        dtype=dtype,
        offload=flags.offload,
        quantize=plan.quantize,
        offline=flags.offline,
    )
    with progress(plan, flags) as on_step:
        drawn = engine.generate(model, [job.request for job in plan.jobs], on_step)
        for job, (request, image) in zip(plan.jobs, drawn, strict=True):
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


@contextmanager
def progress(plan: Plan, flags: DrawFlags) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr where that is a terminal; what it gives is called after each step."""
    if flags.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=sum(job.request.settings.num_steps or 0 for job in plan.jobs))
        yield lambda step: bar.advance(task)
