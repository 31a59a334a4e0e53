"""The tensors of a single-file decoder: read once, fp8 rescaled, unused tensors reported."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kgcli.errors import IncompatibleError, MissingError
from kgcli.weights.lora.unet_names import ldm_unet_names, ldm_vae_names
from kgcli.weights.single_file_header import MARKERS, UNET, VAE, check_single_decoder

_SCALES = (".scale_weight", ".weight_scale")  # of ComfyUI, before and now: weight = stored value * scale
_INPUT_SCALES = (".scale_input", ".input_scale")  # for fp8 matrix multiplication, which is not used here
_QUANTISED = re.compile(r"scale|quant|absmax|zero_point|\.qweight|\.codes")
_UNUSED_BY_ALL = (f"{VAE}loss.", f"{VAE}model_ema.")  # of the VAE's own training

_log = logging.getLogger(__name__)


def read_single_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of U-Net and VAE under the file's own names, in the precision they are stored in.

    Raises:
        MissingError: the file cannot be read.
        IncompatibleError: it is not a decoder of this family, or its quantisation is not supported.
    """
    try:
        with safe_open(str(path), "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            check_single_decoder(path, shapes)
            tensors = {name: file.get_tensor(name) for name in shapes if name.startswith((UNET, VAE))}
    except (OSError, SafetensorError) as error:
        raise MissingError(f"{path} is damaged ({error}); fetch or copy it again") from None
    return _scaled_back(path, {name: tensor for name, tensor in tensors.items() if not _is_marker(name)})


def report_unread(path: Path, tensors: Iterable[str], unet: Iterable[str], vae: Iterable[str]) -> None:
    """Warn of tensors that the U-Net and VAE with these parameters do not use.

    Raises: IncompatibleError if they belong to an unsupported quantisation.
    """
    known = {f"{UNET}{name}" for name in ldm_unet_names(unet).values()}
    known |= {f"{VAE}{name}" for name in ldm_vae_names(vae).values()}
    unread = sorted(name for name in tensors if name not in known and not name.startswith(_UNUSED_BY_ALL))
    if telling := [name for name in unread if _QUANTISED.search(name.rpartition(".")[2])]:
        raise IncompatibleError(f"{path} uses an unsupported quantisation (tensor {telling[0][:100]})")
    if unread:
        _log.warning(
            "%s: %d U-Net and VAE tensors are not used by this decoder and were ignored, such as %s",
            path.name, len(unread), unread[0][:100],
        )  # fmt: skip


def _scaled_back(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with scaled fp8 weights converted to float32."""
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith((*_SCALES, *_INPUT_SCALES))}
    for name, scale in tensors.items():
        if not name.endswith(_SCALES):
            continue
        weight = f"{name.rpartition('.')[0]}.weight"
        if weight not in found or not found[weight].is_floating_point() or scale.numel() not in (1, len(found[weight])):
            raise IncompatibleError(f"{path} uses an unsupported quantisation (tensor {name[:100]})")
        shape = (-1, *[1] * (found[weight].ndim - 1)) if scale.numel() > 1 else ()
        found[weight] = found[weight].to(torch.float32) * scale.to(torch.float32).reshape(shape)
    if integers := [name for name, tensor in found.items() if not tensor.is_floating_point()]:
        raise IncompatibleError(f"{path} uses an unsupported quantisation (tensor {integers[0][:100]})")
    return found


def _is_marker(name: str) -> bool:
    return name.removeprefix(UNET) in MARKERS
