"""`kg eval`: evaluate a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kgcli import runtime
from kgcli.cli.evaluation import bench
from kgcli.cli.evaluation.report import compare, report
from kgcli.cli.logs import set_up_logs
from kgcli.cli.options import DECODER, DEVICE, MODEL, flag
from kgcli.cli.parsing.command import App
from kgcli.errors import Checks

app = App()
app.command()(compare)
app.command()(report)

Model = Annotated[str | None, MODEL]
Num = Annotated[int, typer.Option("--num", min=4, metavar="INT", help="Images per measure, about.")]
Seed = Annotated[int, typer.Option("-s", "--seed", min=0, metavar="INT", help="Random seed of prompts and noise.")]
Device = Annotated[str, DEVICE]
Judges = Annotated[
    Path | None, flag("--judges", metavar="FOLDER", help="Folder of the recognisers; default: those that ship.")
]
Grid = Annotated[Path | None, flag("--grid", metavar="FILE", help="PNG file of prompts and images; default: none.")]
AsJson = Annotated[bool, flag("--json", help="Print JSON instead of the table.")]


@app.callback()
def evaluate() -> None:
    """Evaluate models: benchmarks, comparison of runs, HTML report."""
    set_up_logs()


@app.command()
def nano(
    model: Model = None,
    before: Annotated[
        str | None,
        flag("--before", metavar="MODEL", help="Model before the instruct stage, to compare with; default: none."),
    ] = None,
    num: Num = 96,
    seed: Seed = 0,
    device: Device = "auto",
    judges: Judges = None,
    grid: Grid = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate skills in the nano world (nouns, subjects, scenes, styles, edits), with ceiling and floor.

    Example: kg eval nano --num 24 --grid grid.png
    """
    from kgcli.weights.folder import open_model

    with Checks() as check:
        check(_check_grid, grid)
        folder = check(open_model, model)
        earlier = None if before is None else check(open_model, before, folder.decoder if folder else None)
    assert folder is not None
    from kgcli import engine  # torch loads here, after all checks

    compared = None if earlier is None else engine.load(earlier, device=device)
    loaded = engine.load(folder, device=device)
    report = engine.evaluate("skills", loaded, num=num, seed=seed, before=compared, judges=judges, grid=grid)
    typer.echo(report.to_json() if as_json else str(report))


@app.command()
def adapters(
    model: Model = None,
    decoder: Annotated[str | None, DECODER] = None,
    controlnet: Annotated[
        str | None, flag("--controlnet", metavar="FOLDER", help="ControlNet folder; default: nano/canny.")
    ] = None,
    lora: Annotated[
        str | None, flag("--lora", metavar="LORA[:SCALE]", help="LoRA file or folder; default: nano/comic.")
    ] = None,
    num: Num = 96,
    seed: Seed = 0,
    device: Device = "auto",
    judges: Judges = None,
    grid: Grid = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate adapters of the nano decoder: edges followed (ControlNet), style applied (LoRA), subject kept.

    Example: kg eval adapters --num 24
    """
    from kgcli.weights.folder import open_model

    with Checks() as check:
        check(_check_grid, grid)
        folder = check(open_model, model, decoder)
    assert folder is not None
    from kgcli import engine  # torch loads here, after all checks

    loaded = engine.load(folder, device=device)
    options = {"num": num, "seed": seed, "controlnet": controlnet, "lora": lora, "judges": judges, "grid": grid}
    report = engine.evaluate("adapters", loaded, **options)
    typer.echo(report.to_json() if as_json else str(report))


@app.command()
def vae(
    folder: Annotated[Path, typer.Argument(help="Diffusers folder, or its vae folder.", show_default=False)],
    size: Annotated[
        int, typer.Option("--size", metavar="PIXELS", help="Side of the nano world's images: 64 or 128 pixels.")
    ] = 128,
    num: Annotated[int, typer.Option("--num", min=2, metavar="INT", help="Number of images.")] = 64,
    seed: Seed = 0,
    grid: Grid = None,
    as_json: AsJson = False,
) -> None:
    """VAE reconstruction of images of the nano world: PSNR, strong edges, fine detail, styles.

    Example: kg eval vae runs/nano128/vae/final
    """
    _check_grid(grid)
    weights = (*folder.glob("*.safetensors"), *folder.glob("vae/*.safetensors"))
    runtime.set_threads(runtime.choose_threads(sum(file.stat().st_size for file in weights)))
    from kgcli.evaluation.benchmarks.reconstruction import evaluate_vae

    measured = evaluate_vae(folder, size=size, num=num, seed=seed, grid=grid)
    typer.echo(measured.to_json() if as_json else str(measured))


def _check_grid(grid: Path | None) -> None:
    """Check that the image of prompts can be written. Raises: UsageError, OutputError."""
    from kgcli.inference.output import check_image_file

    if grid is not None:
        check_image_file(grid)


app.command("dreambench")(bench.dreambench)
app.command("coco")(bench.coco)
