"""A KOSMOS-G read from a model folder, whole or quantised, and written to one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from kgcli.config import CONFIG_NAME, AlignerConfig, ModelConfig, read_model_config
from kgcli.errors import UsageError
from kgcli.model.kosmosg import KosmosG
from kgcli.runtime import check_quantize
from kgcli.weights.folder import WEIGHTS_NAME
from kgcli.weights.quantize import quantize_linears
from kgcli.weights.safetensors import assign_weights, check_weights, iter_weights, read_weights, write_weights

ALIGNER = "aligner."
ALIGNER_DECODER = "aligner.decoder."  # serves the alignment stage only; dropped where it is not asked for


def load_kosmosg(
    folder: Path | str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    quantize: str = "none",
    with_aligner_decoder: bool = False,
    fresh: tuple[str, ...] = (),
    aligner: AlignerConfig | None = None,
) -> KosmosG:
    """Load the model of a folder, in evaluation mode.

    Weights under a prefix of `fresh` may be absent from the file; they are then initialised anew. With `aligner` the
    model has another AlignerNet than the folder's, initialised anew. `quantize` (8bit, 4bit) holds the MLLM's linear
    layers in few bits, for generation only.

    Raises:
        UsageError: `quantize` is unknown, or its library is not installed.
        MissingError: the folder or a file is not there or is damaged.
        IncompatibleError: sizes or weights are not those of a KOSMOS-G of this version.

    Example:
        >>> from kgcli.weights.shipped import DEFAULT_MODEL
        >>> load_kosmosg(DEFAULT_MODEL).cfg.aligner.kind
        'full'
    """
    folder = Path(folder)
    check_quantize(quantize, str(device))
    cfg = read_model_config(folder)
    if quantize != "none":
        assert not fresh and not with_aligner_decoder, "what is trained is not quantised"
        return _load_quantized(folder, cfg, torch.device(device), dtype, quantize)
    weights = read_weights(folder / WEIGHTS_NAME, device=device, dtype=dtype)
    if not with_aligner_decoder:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(ALIGNER_DECODER)}
    if aligner is not None:
        cfg = cfg.model_copy(update={"aligner": aligner})
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(ALIGNER)}
        fresh = (*fresh, ALIGNER)
    # Without fresh parts nothing needs memory until its weights arrive.
    with torch.device(device if fresh else "meta"):
        model = KosmosG(cfg, with_aligner_decoder=with_aligner_decoder)
    if fresh:
        model = model.to(dtype)
    assign_weights(model, weights, source=str(folder), fresh=fresh)
    return model.eval()


def save_kosmosg(model: KosmosG, folder: Path | str, *, dtype: torch.dtype | None = None) -> None:
    """Write sizes and weights; a reader never meets a half-written file.

    Raises: UsageError for a quantised model.
    """
    if model.quantize != "none":
        raise UsageError(f"a model loaded in {model.quantize} cannot be saved; load it with quantize none")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / WEIGHTS_NAME, model.state_dict(), dtype=dtype)
    partial = folder / f".{CONFIG_NAME}.{os.getpid()}.partial"
    partial.write_text(model.cfg.model_dump_json(indent=2) + "\n", "utf-8")
    os.replace(partial, folder / CONFIG_NAME)


def _load_quantized(folder: Path, cfg: ModelConfig, device: torch.device, dtype: torch.dtype, quantize: str) -> KosmosG:
    """Load the model with an MLLM in few bits, weight by weight: it is never whole in full precision."""
    with torch.device("meta"):
        model = KosmosG(cfg)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found: dict[str, torch.Size] = {}
    weights = quantize_linears(model, _noting_shapes(_encoder_weights(folder, dtype), found), quantize, device)
    check_weights(shapes, found, source=str(folder))
    model.load_state_dict(weights, strict=False, assign=True)
    model.quantize = quantize
    return model.eval()


def _encoder_weights(folder: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights that encode prompts, one by one."""
    for name, tensor in iter_weights(folder / WEIGHTS_NAME, dtype=dtype):
        if not name.startswith(ALIGNER_DECODER):
            yield name, tensor


def _noting_shapes(
    weights: Iterator[tuple[str, Tensor]], shapes: dict[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights:
        shapes[name] = tensor.shape
        yield name, tensor
