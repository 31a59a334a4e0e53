"""The flags of `generate` and `edit`, written once, and the decorator that gives them to a command."""

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
    """Return a typer option whose default is not shown: None stands for the model's or the suite's own."""
    return typer.Option(*names, help=help, metavar=metavar, show_default=False)


# Field of SamplingConfig -> its type and flag. A field of flags that holds a SamplingConfig names those it takes.
SAMPLING_FLAGS: dict[str, Any] = {
    "num_inference_steps": Annotated[int | None, flag("--steps", help="Denoising steps.")],
    "guidance_scale": Annotated[
        float | None,
        flag("-g", "--guidance-scale", "--cfg-scale", help="How strongly the prompt is followed; 1 = off."),
    ],
    "width": Annotated[int | None, flag("-W", "--width", help="Pixels, a multiple of 8.")],
    "height": Annotated[int | None, flag("-H", "--height", help="Pixels, a multiple of 8.")],
    "scheduler": Annotated[Text, flag("--scheduler", help="ddim, pndm, dpm++, euler, unipc or lcm.")],
}


@dataclass(frozen=True, kw_only=True)
class GenerateFlags:
    """All flags of a command that generates images; defaults of None follow the model."""

    out: Annotated[Text, flag("-o", "--out", help="File, folder/ or template with {prompt} {seed} {index}.")] = None
    num_images: Annotated[int | None, flag("-n", "--num-images", help="Pictures per prompt; the seed counts up.")] = (
        None
    )
    seed: Annotated[list[int] | None, flag("-s", "--seed", help="Seed; several give one picture each.")] = None
    sampling: Annotated[SamplingConfig, tuple(SAMPLING_FLAGS)] = SamplingConfig()
    negative_prompt: Annotated[Text, flag("--negative-prompt", help="What the picture should not show (text).")] = None
    lora: Annotated[
        list[str] | None,
        flag("--lora", metavar="FILE[:SCALE]", help="LoRA of the decoder (.safetensors); repeatable."),
    ] = None
    controlnet: Annotated[
        list[str] | None,
        flag(
            "--controlnet",
            metavar="KIND=IMAGE[:SCALE]",
            help="Follow a picture: canny, scribble, softedge, depth, seg; KIND=@MAP for a ready map; repeatable.",
        ),
    ] = None
    controlnet_model: Annotated[
        list[str] | None,
        flag(
            "--controlnet-model",
            metavar="KIND=FOLDER_OR_ID",
            help="Weights of a ControlNet; default: those for SD v1.5.",
        ),
    ] = None
    map_model: Annotated[
        list[str] | None,
        flag("--map-model", metavar="KIND=FOLDER_OR_ID", help="What makes depth and seg maps (transformers)."),
    ] = None
    model: Annotated[
        Text, flag("--model", help="Model folder, Hub id or pulled name; default: the small model shipped.")
    ] = None
    decoder: Annotated[
        Text, flag("--decoder", help="Another image decoder: diffusers folder, Hub id or .safetensors.")
    ] = None
    device: Annotated[str, flag("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto"
    dtype: Annotated[str, flag("--dtype", help="auto, float32, float16, bfloat16.")] = "auto"
    offload: Annotated[
        str, flag("--offload", help="Spare GPU memory: none, model or sequential (slowest and smallest).")
    ] = "none"
    quantize: Annotated[
        Text, flag("--quantize", help="Hold the language model in few bits: none, 8bit or 4bit (kgcli[quant]).")
    ] = None
    images: Annotated[
        list[str] | None, flag("--image", help="Picture for <image:-1>, the next for <image:-2>, ...")
    ] = None
    batch: Annotated[Text, flag("--batch", help="Prompts from a file, one a line (text or JSON); - is stdin.")] = None
    from_: Annotated[Text, flag("--from", metavar="IMAGE", help="Draw again what this picture's metadata say.")] = None
    allow_download: Annotated[
        bool, flag("--allow-download", help="Let the image of --from name Hub repositories to fetch.")
    ] = False
    json: Annotated[bool, flag("--json", help="One JSON object per picture on stdout.")] = False
    no_metadata: Annotated[bool, flag("--no-metadata", help="Write nothing of the making into the picture.")] = False
    overwrite: Annotated[bool, flag("--overwrite", help="Replace pictures that are there.")] = False
    skip_existing: Annotated[bool, flag("--skip-existing", help="Leave out pictures that are there.")] = False
    offline: Annotated[bool, flag("--offline", help="Fetch nothing.")] = False
    quiet: Annotated[bool, flag("-q", "--quiet", help="Errors only on stderr.")] = False
    verbose: Annotated[bool, flag("-v", "--verbose", help="More on stderr.")] = False


def takes_flags(kind: Any, *, without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command whose last parameter is `flags` the fields of a dataclass, but for some, as flags of its own."""
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
    """Return the keyword that a field of flags becomes, or those of a SamplingConfig."""
    if sampled is not None:
        found: list[tuple[str, Any, Any]] = [(name, SAMPLING_FLAGS[name], None) for name in sampled]
    else:
        missing = field.default is dataclasses.MISSING
        found = [(field.name, hint, inspect.Parameter.empty if missing else field.default)]
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in found
    ]
