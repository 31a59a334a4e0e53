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
    """What both benchmarks take; None leaves it to the suite or the method."""

    out: Annotated[Path, flag("-o", "--out", help="Run folder; one that was left off is taken up again.")]
    data: Annotated[Path | None, flag("--data", help="Folder of the benchmark's data.")] = None
    method: Annotated[
        str,
        flag(
            "--method",
            help="Who draws: kosmosg, sd, copy-input, textual-inversion, dreambooth, ip-adapter, "
            "package.module:Class or file.py:Class.",
        ),
    ] = "kosmosg"
    settings: Annotated[
        list[str] | None, flag("--set", metavar="NAME=VALUE", help="A setting of the method's own; repeatable.")
    ] = None
    only: Annotated[str | None, flag("--only", help="One step: draw or score.")] = None
    images: Annotated[
        Path | None, flag("--images", metavar="DIR_OR_CSV", help="Score these pictures; nothing is drawn.")
    ] = None
    name: Annotated[str | None, flag("--name", help="Of who made the pictures of --images.")] = None
    weights: Annotated[Path | None, flag("--weights", help="Folder of the weights that scoring needs.")] = None
    model: Annotated[str | None, flag("--model", help="Model folder or Hub id; default: the one shipped.")] = None
    decoder: Annotated[str | None, flag("--decoder", help="Image decoder: folder, Hub id or .safetensors.")] = None
    # Where nothing is given, the paper's.
    sampling: Annotated[SamplingConfig, ("num_inference_steps", "guidance_scale", "scheduler")] = SamplingConfig()
    size: Annotated[int | None, flag("--size", help="Pixels of a side; default: the paper's 512.")] = None
    negative_prompt: Annotated[str, flag("--negative-prompt", help="What pictures should not show.")] = ""
    seed: Annotated[int, flag("-s", "--seed", help="Of the noise.")] = 0
    device: Annotated[str, flag("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto"
    dtype: Annotated[str, flag("--dtype", help="auto, float32, float16, bfloat16.")] = "auto"
    offline: Annotated[bool, flag("--offline", help="Fetch nothing.")] = False
    engine: Annotated[str, flag("--engine", help="local (also under accelerate launch and torchrun) or ray.")] = "local"
    workers: Annotated[int, flag("--workers", help="Processes of --engine ray.")] = 1
    quiet: Annotated[bool, flag("-q", "--quiet", help="Errors only on stderr.")] = False


@takes_flags(BenchFlags)
def dreambench(
    suite: Annotated[str, flag("--suite", help="single (the paper's), multi (two and three pictures) or nano.")] = (
        "single"
    ),
    noise: Annotated[str, flag("--noise", help="independent, or official (20 latents in all).")] = "independent",
    class_noun: Annotated[bool, flag("--class-noun", help="Keep the class noun in the input text.")] = False,
    num_images: Annotated[int, flag("-n", "--num-images", help="Pictures per prompt; the paper's: 4.")] = 4,
    subjects: Annotated[str, flag("--subjects", metavar="A,B,...", help="Some of the subjects only.")] = "",
    masks: Annotated[
        Path | None, flag("--masks", help="Score without backgrounds, too: PNG masks in data/ and images/.")
    ] = None,
    segmenter: Annotated[
        str | None,
        flag(
            "--segmenter",
            metavar="FOLDER_OR_ID",
            help='The same with masks by a CLIPSeg; the word "default" is CIDAS/clipseg-rd64-refined.',
        ),
    ] = None,
    also: Annotated[list[str] | None, flag("--also", help="A further score: dinov2.")] = None,
    *,
    flags: BenchFlags,
) -> None:
    """Subjects in new scenes: drawing and scoring, taken up where they were left off.

    --data is the `dataset` folder of github.com/google/dreambooth. --images DIR scores the pictures of another
    system, named <subject>/<prompt:02d>_<image>.png; a .csv has the columns path, subject, prompt, image.
    """
    from kgcli.evaluation.plan import DreamBenchOptions

    names = tuple(name.strip() for name in subjects.split(",") if name.strip())
    ask = DreamBenchOptions(seed=flags.seed, noise=noise, class_noun=class_noun, num_images=num_images, subjects=names)
    scoring = {"masks": masks, "segmenter": segmenter, "also": tuple(also or ())}
    _run(flags, _suite(suite, DREAMBENCH_SUITES), scoring, ask=ask)


@takes_flags(BenchFlags)
def coco(
    suite: Annotated[str, flag("--suite", help="full (COCO) or nano.")] = "full",
    captions: Annotated[str, flag("--captions", help="published, one (a picture) or a .txt or .jsonl file.")] = (
        "published"
    ),
    num: Annotated[int | None, flag("--num", help="Captions; the paper's: 30000.")] = None,
    preset: Annotated[
        list[str] | None, flag("--preset", help="Of FID: kosmosg, kosmosg-rescore, clean, legacy256; repeatable.")
    ] = None,
    real: Annotated[Path | None, flag("--real", help="Real pictures; default: val2014/ of --data.")] = None,
    also: Annotated[
        list[str] | None, flag("--also", help="A further score: clip-score, cmmd, fd-dinov2; repeatable.")
    ] = None,
    *,
    flags: BenchFlags,
) -> None:
    """Captions of COCO: drawing and scoring, taken up where they were left off.

    --data is a folder with annotations/captions_val2014.json and val2014/.
    """
    from kgcli.evaluation.plan import DreamBenchOptions

    scoring = {"presets": tuple(preset or ("kosmosg",)), "real": real, "also": tuple(also or ())}
    ask = DreamBenchOptions(seed=flags.seed)
    _run(flags, _suite(suite, COCO_SUITES), scoring, ask=ask, captions=captions, num=num)


def _suite(name: str, known: dict[str, str]) -> str:
    """The suite's name in plans. Raises: UsageError."""
    from kgcli.errors import UsageError

    if name not in known:
        raise UsageError(f"--suite is {name}; it must be {' or '.join(known)}")
    return known[name]


def _run(flags: BenchFlags, suite: str, scoring: dict[str, Any], **asked: Any) -> None:
    """Run a benchmark and print its run folder."""
    from kgcli.cli.logs import set_up_logs
    from kgcli.evaluation.run.benchmark import run_benchmark

    set_up_logs(quiet=flags.quiet, offline=flags.offline)
    run = run_benchmark(_bench(flags, suite=suite, scoring=scoring, **asked))
    typer.echo(run.path)


def _bench(flags: BenchFlags, scoring: dict[str, Any], **asked: Any) -> Bench:
    """The flags as what is asked of a benchmark. Raises: UsageError."""
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
        **asked,
    )
