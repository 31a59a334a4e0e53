"""The flags of `generate` and `edit`, and the decorator that adds them to a command."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, get_args, get_type_hints

import typer

from kgcli.cli.parsing import complete
from kgcli.config import SamplingConfig

Text = str | None


def flag(*names: str, help: str, metavar: str | None = None, complete: Callable[[str], list[str]] | None = None) -> Any:
    """Return a typer option that states its default in `help`: None often takes that of the model or suite."""
    return typer.Option(*names, help=help, metavar=metavar, show_default=False, autocompletion=complete)


MODEL = flag(
    "--model",
    metavar="MODEL",
    help="Model folder, name of a pulled model (kg models ls) or Hub id; default: nano, which ships with kgcli.",
    complete=complete.models,
)
DECODER = flag(
    "--decoder",
    metavar="DECODER",
    help="Image decoder: diffusers folder, .safetensors file or Hub id; default: that of the model.",
)
DEVICE = flag(
    "--device",
    metavar="DEVICE",
    help="Device to run on: auto, cpu, cuda, cuda:1 or mps; default: auto, the fastest here.",
    complete=complete.devices,
)
DTYPE = flag(
    "--dtype",
    metavar="DTYPE",
    help="Precision: auto, float32, float16 or bfloat16; default: auto, float32 for small models and on CPUs without "
    "bfloat16 arithmetic.",
    complete=complete.dtypes,
)
QUANTIZE = flag(
    "--quantize",
    metavar="HOW",
    help="Bits of the MLLM's linear layers: none, 8bit or 4bit (needs kgcli[quant]); default: none.",
)
IMAGE = flag(
    "--image",
    metavar="FILE",
    help="Image for <image:-1>, the next for <image:-2>; repeatable, default: none.",
    complete=complete.images,
)
OFFLINE = flag("--offline", help="Download nothing; use what is on this machine.")
QUIET = flag("-q", "--quiet", help="Print errors only.")

# Field of SamplingConfig -> its type and flag; a SamplingConfig field of a flags class lists the names it takes.
SAMPLING_FLAGS: dict[str, Any] = {
    "num_inference_steps": Annotated[
        int | None,
        flag(
            "--steps",
            "--num-inference-steps",
            metavar="INT",
            help="Number of denoising steps, 1 to 1000; default: that of the model or suite.",
        ),
    ],
    "guidance_scale": Annotated[
        float | None,
        flag(
            "-g",
            "--guidance-scale",
            "--cfg-scale",
            metavar="FLOAT",
            help="Classifier-free guidance scale, 0 to 100, 1 is off; default: as for --steps.",
        ),
    ],
    "width": Annotated[
        int | None,
        flag("-W", "--width", metavar="PIXELS", help="Image width, a multiple of 8 pixels; default: the model's."),
    ],
    "height": Annotated[
        int | None,
        flag("-H", "--height", metavar="PIXELS", help="Image height, a multiple of 8 pixels; default: the model's."),
    ],
    "scheduler": Annotated[
        Text,
        flag(
            "--scheduler",
            metavar="NAME",
            help="Noise scheduler: ddim, pndm, dpm++, euler, unipc or lcm; default: as for --steps.",
            complete=complete.schedulers,
        ),
    ],
}


@dataclass(frozen=True, kw_only=True)
class GenerateFlags:
    """All flags of a command that generates images; defaults of None follow the model."""

    out: Annotated[
        Text,
        flag(
            "-o",
            "--out",
            metavar="PATH",
            help="Output file, folder/ or template with {prompt} {seed} {index}; default: {prompt}-{seed}.png.",
        ),
    ] = None
    num_images: Annotated[
        int | None,
        flag("-n", "--num-images", metavar="INT", help="Images per prompt, with consecutive seeds; default: 1."),
    ] = None
    seed: Annotated[
        list[int] | None,
        flag(
            "-s",
            "--seed",
            metavar="INT...",
            help="Random seed, or several (-s 1 2 3) for an image each; default: random, and printed.",
        ),
    ] = None
    sampling: Annotated[SamplingConfig, tuple(SAMPLING_FLAGS)] = SamplingConfig()
    negative_prompt: Annotated[
        Text, flag("--negative-prompt", metavar="TEXT", help="Text to guide away from; default: none.")
    ] = None
    lora: Annotated[
        list[str] | None,
        flag(
            "--lora",
            metavar="LORA[:SCALE]",
            help="LoRA of the decoder: .safetensors file, folder with one, or nano/comic; scale -10 to 10, default 1; "
            "repeatable, default: none.",
        ),
    ] = None
    controlnet: Annotated[
        list[str] | None,
        flag(
            "--controlnet",
            metavar="KIND=IMAGE[:SCALE]",
            help="ControlNet and its image: canny, scribble, softedge, depth or seg; KIND=@MAP for a ready map; "
            "repeatable, default: none.",
        ),
    ] = None
    controlnet_model: Annotated[
        list[str] | None,
        flag(
            "--controlnet-model",
            metavar="KIND=MODEL",
            help="Weights of a ControlNet, folder or Hub id; default: for Stable Diffusion v1.5; repeatable.",
        ),
    ] = None
    map_model: Annotated[
        list[str] | None,
        flag(
            "--map-model",
            metavar="KIND=MODEL",
            help="transformers model, folder or Hub id, that makes depth or seg maps; default: Intel/dpt-large and "
            "openmmlab/upernet-convnext-small; repeatable.",
        ),
    ] = None
    model: Annotated[Text, MODEL] = None
    decoder: Annotated[Text, DECODER] = None
    device: Annotated[str, DEVICE] = "auto"
    dtype: Annotated[str, DTYPE] = "auto"
    offload: Annotated[
        str,
        flag(
            "--offload",
            metavar="HOW",
            help="Weights kept in main memory: none, model or sequential (slowest, least GPU memory); default: none.",
        ),
    ] = "none"
    quantize: Annotated[Text, QUANTIZE] = None
    images: Annotated[list[str] | None, IMAGE] = None
    batch: Annotated[
        Text,
        flag(
            "--batch",
            metavar="FILE",
            help="Prompts to generate: .txt or .jsonl, one per line, or .csv or .tsv with a column prompt; - reads "
            "lines from stdin; default: none.",
        ),
    ] = None
    batch_size: Annotated[
        str,
        flag(
            "--batch-size",
            metavar="N|auto",
            help="Images denoised together, 1 to 16, or auto: faster; default: 1.",
        ),
    ] = "1"
    compile: Annotated[
        bool | None,
        flag("--compile/--no-compile", help="Compile the decoder: a slow first image, then faster; default: no."),
    ] = None
    from_: Annotated[
        Text,
        flag(
            "--from",
            metavar="IMAGE",
            help="Generate an image again from its metadata, which other flags override; default: none.",
        ),
    ] = None
    allow_download: Annotated[
        bool, flag("--allow-download", help="Allow downloads from Hub repositories named in the metadata of --from.")
    ] = False
    json: Annotated[bool, flag("--json", help="Print one JSON object per image.")] = False
    no_metadata: Annotated[bool, flag("--no-metadata", help="Write no metadata into the image.")] = False
    overwrite: Annotated[bool, flag("--overwrite", help="Replace existing images.")] = False
    skip_existing: Annotated[bool, flag("--skip-existing", help="Skip images that exist.")] = False
    offline: Annotated[bool, OFFLINE] = False
    quiet: Annotated[bool, QUIET] = False
    verbose: Annotated[bool, flag("-v", "--verbose", help="Print more messages.")] = False


def takes_flags(kind: Any, *, without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the fields of a dataclass, except `without`, as flags to a command whose last parameter is `flags`."""
    hints = get_type_hints(kind, include_extras=True)
    fields = [field for field in dataclasses.fields(kind) if field.name not in without]
    sampled = {
        field.name: get_args(hints[field.name])[1]
        for field in fields
        if get_args(hints[field.name])[0] is SamplingConfig
    }
    added = [one for field in fields for one in _parameters(field, hints[field.name], sampled.get(field.name))]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]

        @wraps(command)
        def run(**values: Any) -> None:
            arguments = {parameter.name: values.pop(parameter.name) for parameter in own}
            for name, taken in sampled.items():
                values[name] = SamplingConfig(**{setting: values.pop(setting) for setting in taken})
            command(**arguments, flags=kind(**values))

        run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
        return run

    return decorate


def _parameters(field: Any, hint: Any, sampled: tuple[str, ...] | None) -> list[inspect.Parameter]:
    """Return the parameter for a field of flags, or those of a SamplingConfig."""
    if sampled is not None:
        found: list[tuple[str, Any, Any]] = [(name, SAMPLING_FLAGS[name], None) for name in sampled]
    else:
        missing = field.default is dataclasses.MISSING
        found = [(field.name, hint, inspect.Parameter.empty if missing else field.default)]
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in found
    ]
