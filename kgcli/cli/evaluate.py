"""`kg eval`: evaluate a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kgcli.cli import bench
from kgcli.cli.logs import set_up_logs
from kgcli.cli.report import compare, report

app = typer.Typer(rich_markup_mode=None, add_completion=False)
app.command()(compare)
app.command()(report)


@app.callback()
def evaluate() -> None:
    """Evaluate models: benchmarks, comparison of runs, HTML report."""
    set_up_logs()


@app.command()
def nano(
    model: Annotated[
        str | None, typer.Option("--model", help="Model folder or Hub id; default: the shipped nano model.")
    ] = None,
    before: Annotated[
        str | None, typer.Option("--before", help="Model folder before the instruct stage, evaluated for comparison.")
    ] = None,
    num: Annotated[
        int, typer.Option("--num", min=4, help="Images per measure; some measures take fewer or more.")
    ] = 96,
    seed: Annotated[int, typer.Option("-s", "--seed", min=0, help="Random seed of prompts and noise.")] = 0,
    device: Annotated[str, typer.Option("--device", help="Device to run on: auto, cpu or cuda.")] = "auto",
    judges: Annotated[
        Path | None, typer.Option("--judges", help="Folder of the recognisers; default: shipped.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option("--grid", help="PNG file to write, a grid of 100 prompts and outputs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Evaluate skills in the nano world (nouns, subjects, scenes, styles, edits), with ceiling and floor."""
    from kgcli.inference.output import check_image_file
    from kgcli.weights.folder import open_model

    folder = open_model(model)
    earlier = None if before is None else open_model(before, folder.decoder)
    if grid is not None:
        check_image_file(grid)
    from kgcli import engine  # torch loads here, after all checks

    compared = None if earlier is None else engine.load(earlier, device=device)
    loaded = engine.load(folder, device=device)
    report = engine.evaluate("skills", loaded, num=num, seed=seed, before=compared, judges=judges, grid=grid)
    typer.echo(report.to_json() if as_json else str(report))


@app.command()
def adapters(
    model: Annotated[
        str | None, typer.Option("--model", help="Model folder or Hub id; default: the shipped nano model.")
    ] = None,
    decoder: Annotated[
        str | None, typer.Option("--decoder", help="Image decoder: a diffusers folder; default: that of the model.")
    ] = None,
    controlnet: Annotated[str | None, typer.Option("--controlnet", help="ControlNet folder; default: shipped.")] = None,
    lora: Annotated[str | None, typer.Option("--lora", help="LoRA as FILE[:SCALE]; default: shipped.")] = None,
    num: Annotated[int, typer.Option("--num", min=4, help="Number of prompts.")] = 96,
    seed: Annotated[int, typer.Option("-s", "--seed", min=0, help="Random seed of prompts and noise.")] = 0,
    device: Annotated[str, typer.Option("--device", help="Device to run on: auto, cpu or cuda.")] = "auto",
    judges: Annotated[
        Path | None, typer.Option("--judges", help="Folder of the recognisers; default: shipped.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option("--grid", help="PNG file to write, a grid of control maps and outputs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Evaluate adapters of the nano decoder: edges followed (ControlNet), style applied (LoRA), subject kept."""
    from kgcli.inference.output import check_image_file
    from kgcli.weights.folder import open_model

    folder = open_model(model, decoder)
    if grid is not None:
        check_image_file(grid)
    from kgcli import engine  # torch loads here, after all checks

    loaded = engine.load(folder, device=device)
    options = {"num": num, "seed": seed, "controlnet": controlnet, "lora": lora, "judges": judges, "grid": grid}
    report = engine.evaluate("adapters", loaded, **options)
    typer.echo(report.to_json() if as_json else str(report))


@app.command()
def vae(
    folder: Annotated[Path, typer.Argument(help="Diffusers folder, or its vae folder.", show_default=False)],
    size: Annotated[int, typer.Option("--size", help="Pixels of the nano world's images: 64 or 128.")] = 128,
    num: Annotated[int, typer.Option("--num", min=2, help="Images.")] = 64,
    seed: Annotated[int, typer.Option("-s", "--seed", min=0, help="Random seed of the images.")] = 0,
    grid: Annotated[Path | None, typer.Option("--grid", help="PNG of images above their reconstructions.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of the table.")] = False,
) -> None:
    """VAE reconstruction of images of the nano world: PSNR, strong edges, fine detail, styles."""
    from kgcli.inference.output import check_image_file

    if grid is not None:
        check_image_file(grid)
    from kgcli.evaluation.benchmarks.reconstruction import evaluate_vae

    measured = evaluate_vae(folder, size=size, num=num, seed=seed, grid=grid)
    typer.echo(measured.to_json() if as_json else str(measured))


app.command("dreambench")(bench.dreambench)
app.command("coco")(bench.coco)
