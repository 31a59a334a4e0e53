"""`kg eval`: evaluate a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kgcli import runtime
from kgcli.cli.evaluation import bench
from kgcli.cli.evaluation.report import compare, report
from kgcli.cli.logs import set_up_logs
from kgcli.cli.options import DECODER, DEVICE, MODEL, flag
from kgcli.cli.parsing.command import App
from kgcli.errors import Checks

if TYPE_CHECKING:
    from kgcli.weights.folder import ModelFolder

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
    folder: Annotated[
        Path | None,
        typer.Argument(help="Diffusers folder of `kg base unet`, evaluated from text alone.", show_default=False),
    ] = None,
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

    FOLDER, a U-Net that has no language model yet, is asked for one and for two subjects by their words.

    Example: kg eval nano --num 24 --grid grid.png
    """
    options: dict[str, Any] = {"num": num, "seed": seed, "judges": judges, "grid": grid}
    with Checks() as check:
        check(_check_grid, grid)
        if folder is not None:
            check(_check_base, folder, model, before)
        else:
            whole = check(_open_model, model)
            earlier = None if before is None else check(_open_model, before, whole.decoder if whole else None)
    from kgcli import engine  # torch loads here, after all checks

    if folder is not None:
        report = engine.evaluate("base", folder, device=device, **options)
    else:
        assert whole is not None
        compared = None if earlier is None else engine.load(earlier, device=device)
        report = engine.evaluate("skills", engine.load(whole, device=device), before=compared, **options)
    typer.echo(report.to_json() if as_json else str(report))


def _open_model(model: str | None, decoder: str | None = None) -> ModelFolder:
    """Open a model folder and check that its images have the world's size. Raises: MissingError, IncompatibleError."""
    from kgcli.evaluation.benchmarks.nano_world import check_model
    from kgcli.weights.folder import open_model

    folder = open_model(model, decoder)
    check_model(folder)
    return folder


def _check_given_decoder(folder: ModelFolder) -> None:
    """Check that the decoder given makes images of the world's size. Raises: MissingError, IncompatibleError."""
    from kgcli.evaluation.benchmarks.nano_world import check_given_decoder

    check_given_decoder(folder)


def _check_base(folder: Path, model: str | None, before: str | None) -> None:
    """Check that a diffusers folder is there and is all that is to be evaluated.

    Raises: UsageError, MissingError, IncompatibleError.
    """
    from kgcli.errors import UsageError
    from kgcli.evaluation.benchmarks.nano_world import check_decoder
    from kgcli.weights.folder import is_model

    if is_model(folder):
        raise UsageError(f"{folder} is a model folder; give it by --model")
    if model is not None or before is not None:
        given = "--model" if model is not None else "--before"
        raise UsageError(f"{folder} is evaluated by itself, from text alone; leave out {given}, or the folder")
    check_decoder(folder)


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
    with Checks() as check:
        check(_check_grid, grid)
        folder = check(_open_model, model, decoder)
        if folder is not None and decoder is not None:
            check(_check_given_decoder, folder)
    assert folder is not None
    from kgcli import engine  # torch loads here, after all checks

    loaded = engine.load(folder, device=device)
    options = {"num": num, "seed": seed, "controlnet": controlnet, "lora": lora, "judges": judges, "grid": grid}
    report = engine.evaluate("adapters", loaded, **options)
    typer.echo(report.to_json() if as_json else str(report))


@app.command()
def vae(
    folder: Annotated[Path, typer.Argument(help="Diffusers folder, or its vae folder.", show_default=False)],
    num: Annotated[int, typer.Option("--num", min=2, metavar="INT", help="Number of images.")] = 64,
    seed: Seed = 0,
    grid: Grid = None,
    as_json: AsJson = False,
) -> None:
    """VAE reconstruction of images of the nano world: PSNR, strong edges, fine detail, styles.

    Example: kg eval vae runs/nano/vae/final
    """
    _check_grid(grid)
    weights = (*folder.glob("*.safetensors"), *folder.glob("vae/*.safetensors"))
    runtime.set_threads(runtime.choose_threads(sum(file.stat().st_size for file in weights)))
    from kgcli.evaluation.benchmarks.reconstruction import evaluate_vae

    measured = evaluate_vae(folder, num=num, seed=seed, grid=grid)
    typer.echo(measured.to_json() if as_json else str(measured))


def _check_grid(grid: Path | None) -> None:
    """Check that the image of prompts can be written. Raises: UsageError, OutputError."""
    from kgcli.inference.output import check_image_file

    if grid is not None:
        check_image_file(grid)


app.command("dreambench")(bench.dreambench)
app.command("coco")(bench.coco)
