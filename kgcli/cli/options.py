"""The flags of `generate` and `edit`, and the decorator that adds them to a command."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, get_args, get_type_hints

import typer

from kgcli.config import SamplingConfig

Text = str | None


def flag(*names: str, help: str, metavar: str | None = None) -> Any:
    """Return a typer option whose default is not shown: None takes that of the model or suite."""
    return typer.Option(*names, help=help, metavar=metavar, show_default=False)


# Field of SamplingConfig -> its type and flag; a SamplingConfig field of a flags class lists the names it takes.
SAMPLING_FLAGS: dict[str, Any] = {
    "num_inference_steps": Annotated[
        int | None, flag("--steps", help="Number of denoising steps; default: that of the model or suite.")
    ],
    "guidance_scale": Annotated[
        float | None,
        flag(
            "-g",
            "--guidance-scale",
            "--cfg-scale",
            help="Classifier-free guidance scale, 0 to 100; 1 = off; default: as for --steps.",
        ),
    ],
    "width": Annotated[
        int | None, flag("-W", "--width", help="Image width, pixels, a multiple of 8; default: the model's.")
    ],
    "height": Annotated[
        int | None, flag("-H", "--height", help="Image height, pixels, a multiple of 8; default: the model's.")
    ],
    "scheduler": Annotated[
        Text,
        flag("--scheduler", help="Noise scheduler: ddim, pndm, dpm++, euler, unipc or lcm; default: as for --steps."),
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
            help="Output file, folder/ or template with {prompt} {seed} {index}; default: {prompt}-{seed}.png.",
        ),
    ] = None
    num_images: Annotated[
        int | None, flag("-n", "--num-images", help="Images per prompt, with consecutive seeds; default: 1.")
    ] = None
    seed: Annotated[
        list[int] | None, flag("-s", "--seed", help="Random seed; repeat for several images; default: random.")
    ] = None
    sampling: Annotated[SamplingConfig, tuple(SAMPLING_FLAGS)] = SamplingConfig()
    negative_prompt: Annotated[Text, flag("--negative-prompt", help="Text to guide away from; default: none.")] = None
    lora: Annotated[
        list[str] | None,
        flag(
            "--lora",
            metavar="FILE[:SCALE]",
            help="LoRA of the decoder (.safetensors), scale -10 to 10, default 1; repeatable.",
        ),
    ] = None
    controlnet: Annotated[
        list[str] | None,
        flag(
            "--controlnet",
            metavar="KIND=IMAGE[:SCALE]",
            help="ControlNet input: canny, scribble, softedge, depth or seg; KIND=@MAP for a ready map; repeatable.",
        ),
    ] = None
    controlnet_model: Annotated[
        list[str] | None,
        flag(
            "--controlnet-model",
            metavar="KIND=FOLDER_OR_ID",
            help="Weights of a ControlNet; default: for Stable Diffusion v1.5; repeatable.",
        ),
    ] = None
    map_model: Annotated[
        list[str] | None,
        flag(
            "--map-model",
            metavar="KIND=FOLDER_OR_ID",
            help="transformers model that makes depth or seg maps; repeatable.",
        ),
    ] = None
    model: Annotated[
        Text, flag("--model", help="Model folder, Hub id or pulled name; default: the shipped nano model.")
    ] = None
    decoder: Annotated[
        Text,
        flag("--decoder", help="Image decoder: diffusers folder, Hub id or .safetensors; default: that of the model."),
    ] = None
    device: Annotated[str, flag("--device", help="Device to run on: auto (default), cpu, cuda, cuda:1 or mps.")] = (
        "auto"
    )
    dtype: Annotated[str, flag("--dtype", help="Precision: auto (default), float32, float16 or bfloat16.")] = "auto"
    offload: Annotated[
        str,
        flag(
            "--offload",
            help="Offload weights to main memory: none (default), model or sequential (slowest, least GPU memory).",
        ),
    ] = "none"
    quantize: Annotated[
        Text, flag("--quantize", help="Quantize the MLLM: none (default), 8bit or 4bit (needs kgcli[quant]).")
    ] = None
    batch_size: Annotated[
        str,
        flag("--batch-size", metavar="N|auto", help="Images denoised together, 1 (default) to 16, or auto: faster."),
    ] = "1"
    compile: Annotated[
        bool | None,
        flag("--compile/--no-compile", help="Compile the decoder: a slow first image, then faster; default: no."),
    ] = None
    images: Annotated[
        list[str] | None, flag("--image", help="Image file for <image:-1>, the next for <image:-2>; repeatable.")
    ] = None
    batch: Annotated[Text, flag("--batch", help="File of prompts, one per line (text or JSON); - reads stdin.")] = None
    from_: Annotated[
        Text, flag("--from", metavar="IMAGE", help="Regenerate an image from its metadata; other flags override them.")
    ] = None
    allow_download: Annotated[
        bool, flag("--allow-download", help="Allow downloads from Hub repositories named in the metadata of --from.")
    ] = False
    json: Annotated[bool, flag("--json", help="Print one JSON object per image.")] = False
    no_metadata: Annotated[bool, flag("--no-metadata", help="Write no metadata into the image.")] = False
    overwrite: Annotated[bool, flag("--overwrite", help="Replace existing images.")] = False
    skip_existing: Annotated[bool, flag("--skip-existing", help="Skip images that exist.")] = False
    offline: Annotated[bool, flag("--offline", help="Download nothing.")] = False
    quiet: Annotated[bool, flag("-q", "--quiet", help="Print errors only.")] = False
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
