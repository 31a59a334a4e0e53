"""The flags of `generate` and `edit`, written once, and the decorator that gives them to a command."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

Text = str | None


def _flag(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, show_default=False)


@dataclass(frozen=True, kw_only=True)
class DrawFlags:
    """All flags of a command that draws; defaults of None follow the model."""

    out: Annotated[Text, _flag("-o", "--out", help="File, folder/ or template with {prompt} {seed} {index}.")] = None
    num_images: Annotated[int | None, _flag("-n", "--num-images", help="Pictures per prompt; the seed counts up.")] = (
        None
    )
    seed: Annotated[list[int] | None, _flag("-s", "--seed", help="Seed; several give one picture each.")] = None
    steps: Annotated[int | None, _flag("--steps", help="Denoising steps.")] = None
    guidance_scale: Annotated[
        float | None,
        _flag("-g", "--guidance-scale", "--cfg-scale", help="How strongly the prompt is followed; 1 = off."),
    ] = None
    negative_prompt: Annotated[Text, _flag("--negative-prompt", help="What the picture should not show (text).")] = None
    width: Annotated[int | None, _flag("-W", "--width", help="Pixels, a multiple of 8.")] = None
    height: Annotated[int | None, _flag("-H", "--height", help="Pixels, a multiple of 8.")] = None
    scheduler: Annotated[Text, _flag("--scheduler", help="ddim, pndm, dpm++, euler, unipc or lcm.")] = None
    lora: Annotated[
        list[str] | None,
        _flag("--lora", metavar="FILE[:SCALE]", help="LoRA of the decoder (.safetensors); repeatable."),
    ] = None
    controlnet: Annotated[
        list[str] | None,
        _flag(
            "--controlnet",
            metavar="KIND=IMAGE[:SCALE]",
            help="Follow a picture: canny, scribble, softedge, depth, seg; KIND=@MAP for a ready map; repeatable.",
        ),
    ] = None
    controlnet_model: Annotated[
        list[str] | None,
        _flag(
            "--controlnet-model",
            metavar="KIND=FOLDER_OR_ID",
            help="Weights of a ControlNet; default: those for SD v1.5.",
        ),
    ] = None
    map_model: Annotated[
        list[str] | None,
        _flag("--map-model", metavar="KIND=FOLDER_OR_ID", help="What makes depth and seg maps (transformers)."),
    ] = None
    model: Annotated[
        Text, _flag("--model", help="Model folder, Hub id or pulled name; default: the small model shipped.")
    ] = None
    decoder: Annotated[
        Text, _flag("--decoder", help="Another image decoder: diffusers folder, Hub id or .safetensors.")
    ] = None
    device: Annotated[str, _flag("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto"
    dtype: Annotated[str, _flag("--dtype", help="auto, float32, float16, bfloat16.")] = "auto"
    offload: Annotated[
        str, _flag("--offload", help="Spare GPU memory: none, model or sequential (slowest and smallest).")
    ] = "none"
    quantize: Annotated[
        Text, _flag("--quantize", help="Hold the language model in few bits: none, 8bit or 4bit (kgcli[quant]).")
    ] = None
    images: Annotated[
        list[str] | None, _flag("--image", help="Picture for <image:-1>, the next for <image:-2>, ...")
    ] = None
    batch: Annotated[Text, _flag("--batch", help="Prompts from a file, one a line (text or JSON); - is stdin.")] = None
    from_: Annotated[Text, _flag("--from", metavar="IMAGE", help="Draw again what this picture's metadata say.")] = None
    allow_download: Annotated[
        bool, _flag("--allow-download", help="Let the image of --from name Hub repositories to fetch.")
    ] = False
    json: Annotated[bool, _flag("--json", help="One JSON object per picture on stdout.")] = False
    no_metadata: Annotated[bool, _flag("--no-metadata", help="Write nothing of the making into the picture.")] = False
    overwrite: Annotated[bool, _flag("--overwrite", help="Replace pictures that are there.")] = False
    skip_existing: Annotated[bool, _flag("--skip-existing", help="Leave out pictures that are there.")] = False
    offline: Annotated[bool, _flag("--offline", help="Fetch nothing.")] = False
    quiet: Annotated[bool, _flag("-q", "--quiet", help="Errors only on stderr.")] = False
    verbose: Annotated[bool, _flag("-v", "--verbose", help="More on stderr.")] = False


def takes_draw_flags(*, without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command whose last parameter is `flags` the fields of `DrawFlags`, but for some, as flags of its own."""
    return takes_flags(DrawFlags, without=without)


def takes_flags(kind: Any, *, without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The same for any dataclass of flags."""
    hints = get_type_hints(kind, include_extras=True)
    fields = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if f.default is dataclasses.MISSING else f.default,
            annotation=hints[f.name],
        )
        for f in dataclasses.fields(kind)
        if f.name not in without
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]

        @wraps(command)
        def run(**values: Any) -> None:
            arguments = {parameter.name: values.pop(parameter.name) for parameter in own}
            command(**arguments, flags=kind(**values))

        run.__signature__ = inspect.Signature([*own, *fields])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *fields)}
        return run

    return decorate
