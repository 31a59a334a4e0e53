"""`kg encode`: a prompt as a file of embeddings, for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kgcli.cli.logs import set_up_logs

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def encode(
    prompt: Annotated[str, typer.Argument(help="Text with <image:PATH> in it.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write (.safetensors).")] = Path("cond.safetensors"),
    negative_prompt: Annotated[str, typer.Option("--negative-prompt", help="What to guide away from (text).")] = "",
    images: Annotated[list[str] | None, typer.Option("--image", help="Picture for <image:-1>, ...")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Model folder or Hub id.", show_default=False)] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, float16, bfloat16.")] = "auto",
    quantize: Annotated[str, typer.Option("--quantize", help="none, 8bit or 4bit (kgcli[quant]).")] = "none",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only on stderr.")] = False,
) -> None:
    """Write what a prompt says to a Stable Diffusion U-Net: prompt_embeds and negative_prompt_embeds, 1 x 77 x 768 each
    at full size. The image decoder is not loaded. ComfyUI, diffusers and others read the file (see README)."""
    set_up_logs(quiet=quiet, offline=offline)
    from kgcli.errors import UsageError
    from kgcli.inference.output import check_writable
    from kgcli.inference.request import make_request
    from kgcli.weights.folder import open_model
    from kgcli.weights.quantization import check_quantize

    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out} does not end in .safetensors")
    if out.is_file() and not overwrite:
        raise UsageError(f"{out} is there already; give --overwrite or another --out")
    check_quantize(quantize, device)
    folder = open_model(model, offline=offline, with_decoder=False)
    request = make_request(folder, prompt, images=images or [], negative_prompt=negative_prompt)
    check_writable(out)
    from kgcli import engine  # torch loads here, after all is known to be sound

    shapes = engine.encode(folder, request, out, device=device, dtype=dtype, quantize=quantize)
    print(json.dumps({"path": str(out), **shapes}) if as_json else out)
