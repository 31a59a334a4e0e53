"""`kg explain`: generate an image and show which reference, and which word, shaped which region."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kgcli.cli.logs import set_up_logs
from kgcli.cli.options import GenerateFlags, takes_flags
from kgcli.cli.parsing.command import App
from kgcli.cli.plan import Job, plan_prompt
from kgcli.data.prompt import Prompt
from kgcli.errors import UsageError
from kgcli.files import write_whole
from kgcli.inference.explain.parts import Part, parts_of
from kgcli.inference.output import slug, write_image

if TYPE_CHECKING:
    from kgcli.inference.explain.maps import Explanation

app = App()


def explain(
    prompt: Annotated[str | None, typer.Argument(help="Text with <image:PATH> tags.", show_default=False)] = None,
    words: Annotated[bool, typer.Option("--words/--no-words", help="Also map the effect of every word.")] = True,
    *,
    flags: GenerateFlags,
) -> None:
    """Generate an image and map which reference, and which word, shaped which region of it.

    Writes the image, one overlay per reference and per word beside it, and a page with all of them:
    out.png, out-1-cat.png, out-2-dog.png, out-word-03-snow.png ..., out.html.

    Example: kg explain "<image:cat.png> in the snow" -s 1 -o out.png
    """
    set_up_logs(quiet=flags.quiet, verbose=flags.verbose, offline=flags.offline)
    plan = plan_prompt(prompt, flags)
    for job in plan.jobs:
        _check(job, words=words, overwrite=flags.overwrite)
    if not plan.jobs:
        return
    if flags.seed is None and flags.from_ is None and not flags.quiet:
        print(f"seed {plan.jobs[0].request.seed}", file=sys.stderr)
    from kgcli.cli.generate import load, progress

    model = load(plan, flags)  # torch loads here, after all checks
    import kgcli.engine as engine

    with progress(plan.jobs, flags) as on_step:
        for job in plan.jobs:
            explanation = engine.explain(model, job.request, words=words, on_step=on_step)
            metadata = model.describe(explanation.request)
            write_image(job.path, explanation.image, None if flags.no_metadata else metadata, overwrite=job.overwrite)
            _report(job, _write(job, explanation, flags.overwrite), flags)


app.command()(takes_flags(GenerateFlags, without=("batch", "batch_size", "skip_existing"))(explain))


def _paths(job: Job, parts: tuple[Part, ...]) -> list[Path]:
    """Return the files beside an image: one overlay per part, then the page."""
    first_word = sum(part.image is not None for part in parts)
    names = [
        f"word-{index - first_word + 1:02d}-{_stem(part)}" if part.image is None else f"{part.image}-{_stem(part)}"
        for index, part in enumerate(parts)
    ]
    return [*(job.path.with_name(f"{job.path.stem}-{name}.png") for name in names), job.path.with_suffix(".html")]


def _stem(part: Part) -> str:
    """Return the label of a part for a file name: a reference without its suffix."""
    return slug(Prompt(parts=(part.label if part.image is None else Path(part.label).stem,)))


def _check(job: Job, *, words: bool, overwrite: bool) -> None:
    """Refuse to start without parts, or if a file beside the image would be replaced. Raises: UsageError."""
    parts = parts_of(job.request.prompt, words=words)
    if not parts:
        raise UsageError("the prompt holds nothing to explain; give it an image or words")
    for path in _paths(job, parts):
        if path.exists() and not overwrite:
            raise UsageError(f"{path} already exists; give --overwrite or another --out")


def _write(job: Job, explanation: Explanation, overwrite: bool) -> dict[str, Any]:
    """Write overlays and page; return their paths and the shares of the parts, as printed by `--json`."""
    from kgcli.inference.explain.page import overlays, png, to_html

    found = overlays(explanation)
    *paths, page = _paths(job, explanation.parts)
    for path, one in zip(paths, found, strict=True):
        write_whole(path, png(one.image), overwrite=overwrite)
    write_whole(page, to_html(explanation, found), overwrite=overwrite)
    rows = [
        {"part": part.label, "image": part.image, "share": round(one.share, 4), "overlay": str(path)}
        for part, one, path in zip(explanation.parts, found, paths, strict=True)
    ]
    return {"path": str(job.path), "page": str(page), "parts": rows}


def _report(job: Job, written: dict[str, Any], flags: GenerateFlags) -> None:
    if flags.json:
        print(json.dumps(written), flush=True)
        return
    print(written["path"], *(row["overlay"] for row in written["parts"]), written["page"], sep="\n", flush=True)
