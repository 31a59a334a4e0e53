"""Encoded prompts as files for other programs: positive and negative conditioning of a Stable Diffusion U-Net.

A safetensors file with two tensors, as used by ComfyUI and diffusers:

    prompt_embeds           (1, S, d)    77 x 768 for Stable Diffusion v1
    negative_prompt_embeds  (1, S, d)

Its metadata are text: `format` (FORMAT), `kgcli` (the version that wrote it), `prompt`, `negative_prompt`, `images`
(JSON, a name and sha256 each), `model` (JSON, name and sha256), `dtype`, `quantize` (none, 8bit or 4bit). Any
change to this comes with another `format`.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kgcli.errors import IncompatibleError, MissingError
from kgcli.inference.encoder import load_encoder
from kgcli.inference.metadata import portable_prompt
from kgcli.inference.output import write_bytes
from kgcli.inference.request import Request
from kgcli.runtime import memory_errors
from kgcli.version import __version__
from kgcli.weights.folder import ModelFolder

FORMAT = "kgcli.conditioning.1"
TENSORS = ("prompt_embeds", "negative_prompt_embeds")


def encode_to_file(
    folder: ModelFolder,
    request: Request,
    out: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
) -> dict[str, list[int]]:
    """Write the conditioning of a request to a file, without an image decoder; return the tensors' shapes."""
    with memory_errors():
        embeds = load_encoder(folder, device=device, dtype=dtype, quantize=quantize).encode_request(request)
    write_conditioning(out, embeds, request, folder, quantize)
    return {name: list(tensor.shape) for name, tensor in zip(TENSORS, embeds, strict=True)}


def write_conditioning(
    path: Path, embeds: tuple[Tensor, Tensor], request: Request, model: ModelFolder, quantize: str
) -> None:
    """Write positive and negative embeddings to a file, atomically.

    Raises: OutputError.
    """
    metadata = {
        "format": FORMAT,
        "kgcli": __version__,
        "prompt": portable_prompt(request),
        "negative_prompt": request.negative_prompt,
        "images": json.dumps([{"name": image.name, "sha256": image.sha256} for image in request.images]),
        "model": json.dumps({"name": model.name, "sha256": model.sha256}),
        "dtype": str(embeds[0].dtype).removeprefix("torch."),
        "quantize": quantize,
    }
    tensors = dict(zip(TENSORS, (tensor.cpu().contiguous() for tensor in embeds), strict=True))
    write_bytes(path, save(tensors, metadata))


def read_conditioning(path: Path | str) -> tuple[Tensor, Tensor]:
    """Read `prompt_embeds` and `negative_prompt_embeds` of a file.

    Raises:
        MissingError: it is missing or damaged.
        IncompatibleError: it is not a file of this format.
    """
    try:
        with safe_open(str(path), "pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise IncompatibleError(
                    f"{path} is not a conditioning file of format {FORMAT}; write one with `kg encode`"
                )
            positive, negative = (file.get_tensor(name) for name in TENSORS)
            return positive, negative
    except (OSError, SafetensorError) as error:
        raise MissingError(f"the conditioning {path} is missing or damaged ({error})") from None
