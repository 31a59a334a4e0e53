"""`kg eval dreambench` and `kg eval coco`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from kgcli.cli.options import DECODER, DEVICE, DTYPE, MODEL, OFFLINE, QUIET, flag, takes_flags
from kgcli.config import SamplingConfig
from kgcli.errors import Checks, UsageError, raise_all
from kgcli.evaluation.baselines.base import MethodOptions

DREAMBENCH_SUITES = {"single": "dreambench", "multi": "dreambench-multi", "nano": "nano-dreambench"}
COCO_SUITES = {"full": "coco", "nano": "nano-coco"}


@dataclass(frozen=True, kw_only=True)
class BenchFlags:
    """Flags of both benchmarks; None takes the default of the suite or method."""

    out: Annotated[
        Path, flag("-o", "--out", metavar="FOLDER", help="Run folder; an interrupted run in it is resumed. Required.")
    ]
    data: Annotated[
        Path | None,
        flag("--data", metavar="FOLDER", help="Folder of the benchmark's data; default: none, the cache for nano."),
    ] = None
    method: Annotated[
        str,
        flag(
            "--method",
            metavar="NAME",
            help="Method or baseline that generates: kosmosg, sd, copy-input, textual-inversion, dreambooth, "
            "ip-adapter, package.module:Class or file.py:Class; default: kosmosg.",
        ),
    ] = "kosmosg"
    settings: Annotated[
        list[str] | None,
        flag("--set", metavar="NAME=VALUE", help="Setting of the method; repeatable, default: the method's."),
    ] = None
    only: Annotated[
        str | None, flag("--only", metavar="STEP", help="One step only: generate or score; default: both.")
    ] = None
    images: Annotated[
        Path | None,
        flag(
            "--images", metavar="DIR_OR_CSV", help="Images of another system, to score; default: none, generate them."
        ),
    ] = None
    name: Annotated[
        str | None,
        flag("--name", metavar="TEXT", help="Name of the system that made --images; default: that of the folder."),
    ] = None
    weights: Annotated[
        Path | None,
        flag(
            "--weights",
            metavar="FOLDER",
            help="Folder of the weights for scoring, for nano with judges, eval_clip and eval_dino; default: "
            "$KG_WEIGHTS, or the cache, and for nano those that ship.",
        ),
    ] = None
    model: Annotated[str | None, MODEL] = None
    decoder: Annotated[str | None, DECODER] = None
    # Default: the paper's settings.
    sampling: Annotated[SamplingConfig, ("num_inference_steps", "guidance_scale", "scheduler")] = SamplingConfig()
    size: Annotated[
        int | None,
        flag("--size", metavar="PIXELS", help="Width and height; default: that of the suite (paper: 512 pixels)."),
    ] = None
    negative_prompt: Annotated[
        str, flag("--negative-prompt", metavar="TEXT", help="Text to guide away from; default: none.")
    ] = ""
    seed: Annotated[int, flag("-s", "--seed", metavar="INT", help="Random seed of the noise; default: 0.")] = 0
    device: Annotated[str, DEVICE] = "auto"
    dtype: Annotated[str, DTYPE] = "auto"
    offline: Annotated[bool, OFFLINE] = False
    engine: Annotated[
        str,
        flag(
            "--engine", metavar="NAME", help="local (also under accelerate launch and torchrun) or ray; default: local."
        ),
    ] = "local"
    workers: Annotated[
        int | None,
        flag(
            "--workers",
            metavar="INT",
            help="Processes that score on a CPU, and with --engine ray generate; the scores are the same for any "
            "number. default: as many as CPU cores may be used, up to 8 (1 with ray).",
        ),
    ] = None
    quiet: Annotated[bool, QUIET] = False


@takes_flags(BenchFlags)
def dreambench(
    suite: Annotated[
        str,
        flag(
            "--suite",
            metavar="NAME",
            help="single, multi (two and three images) or nano; default: single, the paper's.",
        ),
    ] = "single",
    noise: Annotated[
        str,
        flag("--noise", metavar="KIND", help="independent, or official (20 latents in all); default: independent."),
    ] = "independent",
    class_noun: Annotated[bool, flag("--class-noun", help="Keep the class noun in the input text.")] = False,
    num_images: Annotated[
        int, flag("-n", "--num-images", metavar="INT", help="Images per prompt; default: 4, as in the paper.")
    ] = 4,
    subjects: Annotated[str, flag("--subjects", metavar="A,B,...", help="Run only these subjects; default: all.")] = "",
    masks: Annotated[
        Path | None,
        flag(
            "--masks",
            metavar="FOLDER",
            help="Also score without backgrounds, by PNG masks in data/ and images/ of it; default: none.",
        ),
    ] = None,
    segmenter: Annotated[
        str | None,
        flag(
            "--segmenter",
            metavar="MODEL",
            help='Also score without backgrounds, masks by this CLIPSeg, folder or Hub id ("default" is '
            "CIDAS/clipseg-rd64-refined); default: none.",
        ),
    ] = None,
    also: Annotated[
        list[str] | None, flag("--also", metavar="NAME", help="Additional score: dinov2; default: none.")
    ] = None,
    *,
    flags: BenchFlags,
) -> None:
    """DreamBench, subjects in new scenes: generate and score; resumes if interrupted.

    --data is the `dataset` folder of github.com/google/dreambooth. --images DIR scores the images of another
    system, named <subject>/<prompt:02d>_<image>.png; a .csv has the columns path, subject, prompt, image.

    Example: kg eval dreambench --suite nano --subjects cow -n 1 -o runs/cow
    """
    names = tuple(name.strip() for name in subjects.split(",") if name.strip())
    options = {"noise": noise, "class_noun": class_noun, "num_images": num_images, "subjects": names}
    scoring = {"masks": masks, "segmenter": segmenter, "also": tuple(also or ())}
    _run(flags, suite, DREAMBENCH_SUITES, scoring, options)


@takes_flags(BenchFlags)
def coco(
    suite: Annotated[str, flag("--suite", metavar="NAME", help="full (COCO) or nano; default: full.")] = "full",
    captions: Annotated[
        str,
        flag(
            "--captions",
            metavar="WHICH",
            help="Captions: published, one (per image), or a .txt or .jsonl file; default: published.",
        ),
    ] = "published",
    num: Annotated[
        int | None,
        flag("--num", metavar="INT", help="Number of captions; default: that of the suite (paper: 30000)."),
    ] = None,
    preset: Annotated[
        list[str] | None,
        flag(
            "--preset",
            metavar="NAME",
            help="FID preset: kosmosg, kosmosg-rescore, clean or legacy256; repeatable, default: kosmosg.",
        ),
    ] = None,
    real: Annotated[
        Path | None, flag("--real", metavar="FOLDER", help="Folder of real images; default: val2014/ of --data.")
    ] = None,
    also: Annotated[
        list[str] | None,
        flag(
            "--also",
            metavar="NAME",
            help="Additional score: clip-score, cmmd or fd-dinov2; repeatable, default: none.",
        ),
    ] = None,
    *,
    flags: BenchFlags,
) -> None:
    """COCO captions: generate and score; resumes if interrupted.

    --data is a folder with annotations/captions_val2014.json and val2014/.

    Example: kg eval coco --suite nano --num 64 -o runs/captions
    """
    scoring = {"presets": tuple(preset or ("kosmosg",)), "real": real, "also": tuple(also or ())}
    _run(flags, suite, COCO_SUITES, scoring, {}, captions=captions, num=num)


def _suite(name: str, known: dict[str, str]) -> str:
    """Return the suite's name in plans. Raises: UsageError."""
    if name not in known:
        raise UsageError(f"--suite is {name}; it must be {' or '.join(known)}")
    return known[name]


def _run(
    flags: BenchFlags, suite: str, suites: dict[str, str], scoring: dict[str, Any], options: dict[str, Any], **more: Any
) -> None:
    """Run a benchmark; print its scores to stderr and its run folder.

    Raises: SeveralErrors with the faults of all flags and inputs.
    """
    from kgcli.cli.logs import set_up_logs
    from kgcli.evaluation.extractors.processes import default_workers
    from kgcli.evaluation.plan import DreamBenchOptions
    from kgcli.evaluation.report.tables import to_text
    from kgcli.evaluation.run.benchmark import Bench, check_inputs, run_benchmark
    from kgcli.evaluation.run.scoring import Scoring
    from kgcli.evaluation.scores import Scores

    set_up_logs(quiet=flags.quiet, offline=flags.offline)
    workers = (1 if flags.engine == "ray" else default_workers()) if flags.workers is None else flags.workers
    scored: dict[str, Any] = {"offline": flags.offline, "device": flags.device, "workers": workers}
    with Checks() as check:
        needed: dict[str, Any] = {
            "out": flags.out,
            "suite": check(_suite, suite, suites) or next(iter(suites.values())),
            "data": flags.data,
            "method": flags.method,
            "options": check(_method_options, flags) or MethodOptions(),
            "images": flags.images,
            "suite_options": check(DreamBenchOptions, seed=flags.seed, **options) or DreamBenchOptions(),
            "scoring": check(Scoring, weights=flags.weights, **scored, **scoring) or Scoring(),
        }
        only = "generate" if flags.only == "draw" else flags.only
        rest = {"name": flags.name, "only": only, "engine": flags.engine, "num_workers": workers, **more}
        bench = check(Bench, **needed, **rest)
        if check.faults:  # in the inputs too?
            known, check.faults = check.faults, []
            check(check_inputs, bench or Bench(**needed), known=known)
    assert bench is not None
    run = run_benchmark(bench)
    if run.is_scored and bench.only != "generate" and not flags.quiet:
        typer.echo(to_text(Scores.read(run.path)), err=True)
    typer.echo(str(run.path))


def _method_options(flags: BenchFlags) -> MethodOptions:
    """Return the flags of the method. Raises: UsageError."""
    flags.sampling.check()
    pairs = [(setting, *setting.partition("=")) for setting in flags.settings or []]
    raise_all(
        [UsageError(f"--set {one}: write NAME=VALUE") for one, name, equals, _ in pairs if not name or not equals]
    )
    return MethodOptions(
        model=flags.model,
        decoder=flags.decoder,
        device=flags.device,
        dtype=flags.dtype,
        offline=flags.offline,
        sampling=flags.sampling.model_copy(update={"width": flags.size, "height": flags.size}),
        negative_prompt=flags.negative_prompt,
        extra=tuple((name, value) for _, name, _, value in pairs),
    )
