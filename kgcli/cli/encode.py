"""`kg encode`: prompt embeddings as a file for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kgcli.cli.logs import set_up_logs

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def encode(
    prompt: Annotated[str, typer.Argument(help="Text with <image:PATH> tags.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write (.safetensors).")] = Path("cond.safetensors"),
    negative_prompt: Annotated[
        str, typer.Option("--negative-prompt", help="Text to guide away from; default: empty.")
    ] = "",
    images: Annotated[
        list[str] | None,
        typer.Option("--image", help="Image file for <image:-1>, the next for <image:-2>; repeatable."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Model folder, Hub id or pulled name; default: the shipped nano model.", show_default=False
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Device to run on: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="Precision: auto, float32, float16 or bfloat16.")] = "auto",
    quantize: Annotated[
        str, typer.Option("--quantize", help="Quantize the MLLM: none, 8bit or 4bit (needs kgcli[quant]).")
    ] = "none",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Write prompt_embeds and negative_prompt_embeds for a Stable Diffusion U-Net, 1 x 77 x 768 each at full size.

    The image decoder is not loaded. ComfyUI, diffusers and others read the file (see docs/adapters.md).
    """
    set_up_logs(quiet=quiet, offline=offline)
    from kgcli.errors import UsageError
    from kgcli.inference.output import check_writable
    from kgcli.inference.request import make_request
    from kgcli.runtime import check_quantize, choose_threads, set_threads
    from kgcli.weights.folder import open_model

    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out} does not end in .safetensors")
    if out.is_file() and not overwrite:
        raise UsageError(f"{out} already exists; give --overwrite or another --out")
    check_quantize(quantize, device)
    folder = open_model(model, offline=offline, with_decoder=False)
    request = make_request(folder, prompt, images=images or [], negative_prompt=negative_prompt)
    check_writable(out)
    set_threads(choose_threads(folder.num_bytes))
    from kgcli import engine  # torch loads here, after all checks

    shapes = engine.encode(folder, request, out, device=device, dtype=dtype, quantize=quantize)
    print(json.dumps({"path": str(out), **shapes}) if as_json else out)
