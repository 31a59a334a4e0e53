"""`kg encode`: prompt embeddings as a file for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kgcli.cli.logs import set_up_logs
from kgcli.cli.options import DEVICE, DTYPE, IMAGE, MODEL, OFFLINE, QUANTIZE, QUIET, flag
from kgcli.cli.parsing.command import App

app = App()


@app.command()
def encode(
    prompt: Annotated[str, typer.Argument(help="Text with <image:PATH> tags.", show_default=False)],
    out: Annotated[
        Path, flag("-o", "--out", metavar="FILE", help="File to write (.safetensors); default: cond.safetensors.")
    ] = Path("cond.safetensors"),
    negative_prompt: Annotated[
        str, flag("--negative-prompt", metavar="TEXT", help="Text to guide away from; default: none.")
    ] = "",
    images: Annotated[list[str] | None, IMAGE] = None,
    model: Annotated[str | None, MODEL] = None,
    device: Annotated[str, DEVICE] = "auto",
    dtype: Annotated[str, DTYPE] = "auto",
    quantize: Annotated[str, QUANTIZE] = "none",
    as_json: Annotated[bool, flag("--json", help="Print one JSON object.")] = False,
    overwrite: Annotated[bool, flag("--overwrite", help="Replace an existing file.")] = False,
    offline: Annotated[bool, OFFLINE] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Write prompt_embeds and negative_prompt_embeds for a Stable Diffusion U-Net, 1 x 77 x 768 each at full size.

    The image decoder is not loaded. ComfyUI, diffusers and others read the file (see docs/adapters.md).

    Example: kg encode "a cat <image:cat.png>" -o cat.safetensors
    """
    set_up_logs(quiet=quiet, offline=offline)
    from kgcli.errors import UsageError
    from kgcli.inference.output import check_writable
    from kgcli.inference.request import make_request
    from kgcli.runtime import check_quantize
    from kgcli.weights.folder import open_model

    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out} does not end in .safetensors")
    if out.is_file() and not overwrite:
        raise UsageError(f"{out} already exists; give --overwrite or another --out")
    check_quantize(quantize, device)
    folder = open_model(model, offline=offline, with_decoder=False)
    request = make_request(folder, prompt, images=images or [], negative_prompt=negative_prompt)
    check_writable(out)
    from kgcli import engine  # torch loads here, after all checks

    shapes = engine.encode(folder, request, out, device=device, dtype=dtype, quantize=quantize)
    print(json.dumps({"path": str(out), **shapes}) if as_json else out)
