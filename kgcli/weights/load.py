"""Loading and saving of KOSMOS-G model folders, quantised if requested, and of a CLIP folder's vision tower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kgcli.config import ALIGNER, CONFIG_NAME, AlignerConfig, ModelConfig, VisionConfig, check_aligner
from kgcli.errors import IncompatibleError, MissingError, UsageError
from kgcli.files import make_folder, write_whole
from kgcli.model.aligner import AlignerNet
from kgcli.model.kosmosg import KosmosG
from kgcli.runtime import check_quantize
from kgcli.weights.config import read_model_config
from kgcli.weights.folder import WEIGHTS_NAME
from kgcli.weights.meta import on_meta
from kgcli.weights.published.names import vision_from_transformers
from kgcli.weights.quantize import quantize_linears
from kgcli.weights.safetensors import (
    assign_weights,
    check_weights,
    iter_weights,
    read_weights,
    stored_names,
    write_weights,
)

ALIGNER_DECODER = "aligner.decoder."  # serves the alignment stage only; dropped unless requested


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

    On device `meta` the model has its shapes alone, and files are checked without being read.
    Weights under a prefix of `fresh` may be absent from the file; they are then newly initialised. `aligner` replaces
    the folder's AlignerNet by a newly initialised one. `quantize` (8bit, 4bit) quantises the MLLM's linear layers,
    for generation only.

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
        assert not fresh and not with_aligner_decoder, "a model to be trained is not quantised"
        return _load_quantized(folder, cfg, torch.device(device), dtype, quantize)
    weights = read_weights(folder / WEIGHTS_NAME, device=device, dtype=dtype)
    if not with_aligner_decoder:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(ALIGNER_DECODER)}
    if aligner is not None:
        cfg = cfg.model_copy(update={"aligner": aligner})
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(ALIGNER)}
        fresh = (*fresh, ALIGNER)
    if not fresh:
        check_aligner(weights, folder)
    # Only a fresh part needs memory before its weights are loaded.
    with on_meta():
        model = KosmosG(cfg, with_aligner_decoder=with_aligner_decoder)
    if fresh:
        assert all(prefix.startswith(ALIGNER) for prefix in fresh), "only the AlignerNet can be newly initialised"
        with on_meta() if torch.device(device).type == "meta" else torch.device(device):
            aligner_net = AlignerNet(cfg.aligner, cfg.mllm.width, with_decoder=with_aligner_decoder)
        model.aligner = aligner_net.to(dtype)
    assign_weights(model, weights, source=str(folder), fresh=fresh)
    return model.eval()


def save_kosmosg(
    model: KosmosG,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write config.json and weights, each file atomically; `weights` replaces the model's own.

    Raises: UsageError for a quantised model.
    """
    if model.quantize != "none":
        raise UsageError(f"a model loaded in {model.quantize} cannot be saved; load it with quantize none")
    folder = Path(folder)
    make_folder(folder)
    write_weights(folder / WEIGHTS_NAME, model.state_dict() if weights is None else weights, dtype=dtype)
    write_whole(folder / CONFIG_NAME, model.cfg.model_dump_json(indent=2) + "\n")


def has_aligner(folder: Path, part: str = ALIGNER) -> bool:
    """Tell whether a model folder has an AlignerNet, or a part of it. Raises: MissingError."""
    return any(name.startswith(part) for name in stored_names(folder / WEIGHTS_NAME))


def load_tower(folder: Path, cfg: VisionConfig, *, device: str = "cpu") -> dict[str, Tensor]:
    """Return the vision tower (names as in `VisionTower`) of a CLIP saved by transformers or `kg base clip`.

    Raises: MissingError; IncompatibleError if the CLIP's settings differ from `cfg`.
    """
    from transformers import CLIPVisionConfig

    clip = next((place for place in (folder / "clip", folder) if (place / CONFIG_NAME).is_file()), None)
    if clip is None:
        raise MissingError(f"{folder} holds no CLIP: there is no {CONFIG_NAME} in it, nor in a folder clip")
    found = CLIPVisionConfig.from_pretrained(clip, local_files_only=True)
    settings = {
        "image_size": (found.image_size, cfg.image_size),
        "patch_size": (found.patch_size, cfg.patch_size),
        "width": (found.hidden_size, cfg.width),
        "num_heads": (found.num_attention_heads, cfg.num_heads),
        "num_layers": (found.num_hidden_layers, cfg.num_layers),
        "activation": (found.hidden_act, cfg.activation),
    }
    wrong = [f"{name} is {theirs}, not {ours}" for name, (theirs, ours) in settings.items() if theirs != ours]
    if wrong:
        raise IncompatibleError(f"the CLIP of {clip}: {', '.join(wrong)}; set model.vision to its values")
    return vision_from_transformers(read_weights(clip / WEIGHTS_NAME, device=device))


def _load_quantized(folder: Path, cfg: ModelConfig, device: torch.device, dtype: torch.dtype, quantize: str) -> KosmosG:
    """Load the model with a quantised MLLM, weight by weight: it is never in memory in full precision."""
    with on_meta():
        model = KosmosG(cfg)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found: dict[str, torch.Size] = {}
    weights = quantize_linears(model, _noting_shapes(_encoder_weights(folder, dtype), found), quantize, device)
    check_aligner(found, folder)
    check_weights(shapes, found, source=str(folder))
    model.load_state_dict(weights, strict=False, assign=True)
    model.quantize = quantize
    return model.eval()


def _encoder_weights(folder: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the prompt encoder, one by one."""
    for name, tensor in iter_weights(folder / WEIGHTS_NAME, dtype=dtype):
        if not name.startswith(ALIGNER_DECODER):
            yield name, tensor


def _noting_shapes(
    weights: Iterator[tuple[str, Tensor]], shapes: dict[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights:
        shapes[name] = tensor.shape
        yield name, tensor
