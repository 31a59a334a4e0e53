"""`kg eval dreambench` and `kg eval coco`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kgcli.cli.options import flag, takes_flags
from kgcli.config import SamplingConfig

if TYPE_CHECKING:
    from kgcli.evaluation.run.benchmark import Bench

DREAMBENCH_SUITES = {"single": "dreambench", "multi": "dreambench-multi", "nano": "nano-dreambench"}
COCO_SUITES = {"full": "coco", "nano": "nano-coco"}


@dataclass(frozen=True, kw_only=True)
class BenchFlags:
    """Flags of both benchmarks; None takes the default of the suite or method."""

    out: Annotated[Path, flag("-o", "--out", help="Run folder; an interrupted run is resumed.")]
    data: Annotated[Path | None, flag("--data", help="Folder of the benchmark's data.")] = None
    method: Annotated[
        str,
        flag(
            "--method",
            help="Method or baseline that generates: kosmosg (default), sd, copy-input, textual-inversion, dreambooth, "
            "ip-adapter, package.module:Class or file.py:Class.",
        ),
    ] = "kosmosg"
    settings: Annotated[
        list[str] | None, flag("--set", metavar="NAME=VALUE", help="Setting of the method; repeatable.")
    ] = None
    only: Annotated[str | None, flag("--only", help="Run one step only: draw (generate) or score.")] = None
    images: Annotated[
        Path | None, flag("--images", metavar="DIR_OR_CSV", help="Score these images instead of generating any.")
    ] = None
    name: Annotated[str | None, flag("--name", help="Name of the system that made --images.")] = None
    weights: Annotated[Path | None, flag("--weights", help="Folder of the weights for scoring.")] = None
    model: Annotated[str | None, flag("--model", help="Model folder or Hub id; default: the shipped nano model.")] = (
        None
    )
    decoder: Annotated[
        str | None,
        flag("--decoder", help="Image decoder: diffusers folder, Hub id or .safetensors; default: that of the model."),
    ] = None
    # Default: the paper's settings.
    sampling: Annotated[SamplingConfig, ("num_inference_steps", "guidance_scale", "scheduler")] = SamplingConfig()
    size: Annotated[
        int | None, flag("--size", help="Width and height, pixels; default: that of the suite (paper: 512).")
    ] = None
    negative_prompt: Annotated[str, flag("--negative-prompt", help="Text to guide away from; default: none.")] = ""
    seed: Annotated[int, flag("-s", "--seed", help="Random seed of the noise; default: 0.")] = 0
    device: Annotated[str, flag("--device", help="Device to run on: auto (default), cpu, cuda, cuda:1 or mps.")] = (
        "auto"
    )
    dtype: Annotated[str, flag("--dtype", help="Precision: auto (default), float32, float16 or bfloat16.")] = "auto"
    offline: Annotated[bool, flag("--offline", help="Download nothing.")] = False
    engine: Annotated[
        str, flag("--engine", help="local (default; also under accelerate launch and torchrun) or ray.")
    ] = "local"
    workers: Annotated[int, flag("--workers", help="Worker processes of --engine ray; default: 1.")] = 1
    quiet: Annotated[bool, flag("-q", "--quiet", help="Print errors only.")] = False


@takes_flags(BenchFlags)
def dreambench(
    suite: Annotated[
        str, flag("--suite", help="single (default; the paper's), multi (two and three images) or nano.")
    ] = ("single"),
    noise: Annotated[
        str, flag("--noise", help="Noise of the images: independent (default) or official (20 latents in all).")
    ] = "independent",
    class_noun: Annotated[bool, flag("--class-noun", help="Keep the class noun in the input text.")] = False,
    num_images: Annotated[int, flag("-n", "--num-images", help="Images per prompt; default: 4, as in the paper.")] = 4,
    subjects: Annotated[str, flag("--subjects", metavar="A,B,...", help="Run only these subjects.")] = "",
    masks: Annotated[
        Path | None, flag("--masks", help="Also score without backgrounds; folder with PNG masks in data/ and images/.")
    ] = None,
    segmenter: Annotated[
        str | None,
        flag(
            "--segmenter",
            metavar="FOLDER_OR_ID",
            help='Also score without backgrounds, masks by this CLIPSeg; "default" is CIDAS/clipseg-rd64-refined.',
        ),
    ] = None,
    also: Annotated[list[str] | None, flag("--also", help="Additional score: dinov2.")] = None,
    *,
    flags: BenchFlags,
) -> None:
    """DreamBench, subjects in new scenes: generate and score; resumes if interrupted.

    --data is the `dataset` folder of github.com/google/dreambooth. --images DIR scores the images of another
    system, named <subject>/<prompt:02d>_<image>.png; a .csv has the columns path, subject, prompt, image.
    """
    from kgcli.evaluation.plan import DreamBenchOptions

    names = tuple(name.strip() for name in subjects.split(",") if name.strip())
    suite_options = DreamBenchOptions(
        seed=flags.seed, noise=noise, class_noun=class_noun, num_images=num_images, subjects=names
    )
    scoring = {"masks": masks, "segmenter": segmenter, "also": tuple(also or ())}
    _run(flags, _suite(suite, DREAMBENCH_SUITES), scoring, suite_options=suite_options)


@takes_flags(BenchFlags)
def coco(
    suite: Annotated[str, flag("--suite", help="full (default; COCO) or nano.")] = "full",
    captions: Annotated[
        str, flag("--captions", help="Captions: published (default), one (per image), or a .txt or .jsonl file.")
    ] = ("published"),
    num: Annotated[
        int | None, flag("--num", help="Number of captions; default: that of the suite (paper: 30000).")
    ] = None,
    preset: Annotated[
        list[str] | None,
        flag("--preset", help="FID preset: kosmosg (default), kosmosg-rescore, clean or legacy256; repeatable."),
    ] = None,
    real: Annotated[Path | None, flag("--real", help="Folder of real images; default: val2014/ of --data.")] = None,
    also: Annotated[
        list[str] | None, flag("--also", help="Additional score: clip-score, cmmd or fd-dinov2; repeatable.")
    ] = None,
    *,
    flags: BenchFlags,
) -> None:
    """COCO captions: generate and score; resumes if interrupted.

    --data is a folder with annotations/captions_val2014.json and val2014/.
    """
    from kgcli.evaluation.plan import DreamBenchOptions

    scoring = {"presets": tuple(preset or ("kosmosg",)), "real": real, "also": tuple(also or ())}
    suite_options = DreamBenchOptions(seed=flags.seed)
    _run(flags, _suite(suite, COCO_SUITES), scoring, suite_options=suite_options, captions=captions, num=num)


def _suite(name: str, known: dict[str, str]) -> str:
    """Return the suite's name in plans. Raises: UsageError."""
    from kgcli.errors import UsageError

    if name not in known:
        raise UsageError(f"--suite is {name}; it must be {' or '.join(known)}")
    return known[name]


def _run(flags: BenchFlags, suite: str, scoring: dict[str, Any], **more: Any) -> None:
    """Run a benchmark and print its run folder."""
    from kgcli.cli.logs import set_up_logs
    from kgcli.evaluation.run.benchmark import run_benchmark

    set_up_logs(quiet=flags.quiet, offline=flags.offline)
    run = run_benchmark(_bench(flags, suite=suite, scoring=scoring, **more))
    typer.echo(run.path)


def _bench(flags: BenchFlags, scoring: dict[str, Any], **more: Any) -> Bench:
    """Return the flags as the options of a benchmark. Raises: UsageError."""
    from kgcli.errors import UsageError
    from kgcli.evaluation.baselines.base import MethodOptions
    from kgcli.evaluation.run.benchmark import Bench
    from kgcli.evaluation.run.scoring import Scoring

    pairs = [(setting, *setting.partition("=")) for setting in flags.settings or []]
    for setting, name, equals, _ in pairs:
        if not name or not equals:
            raise UsageError(f"--set {setting}: write NAME=VALUE")
    options = MethodOptions(
        model=flags.model,
        decoder=flags.decoder,
        device=flags.device,
        dtype=flags.dtype,
        offline=flags.offline,
        sampling=flags.sampling.model_copy(update={"width": flags.size, "height": flags.size}),
        negative_prompt=flags.negative_prompt,
        extra=tuple((name, value) for _, name, _, value in pairs),
    )
    return Bench(
        out=flags.out,
        data=flags.data,
        method=flags.method,
        options=options,
        images=flags.images,
        name=flags.name,
        only=flags.only,
        engine=flags.engine,
        num_workers=flags.workers,
        scoring=Scoring(weights=flags.weights, offline=flags.offline, device=flags.device, **scoring),
        **more,
    )
