"""Quantisation of the MLLM's linear layers to 8 or 4 bits by bitsandbytes, each as soon as its weight is read.

8bit is LLM.int8(): int8 per weight row and per token, outliers in half precision. 4bit is NF4 in blocks of 64.
Biases, norms, the word embedding, vision tower, resampler and AlignerNet are not quantised.

Source: LLM.int8() (arXiv:2208.07339); QLoRA (arXiv:2305.14314) for NF4.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

PART = "mllm"  # the part whose linear layers are quantised
OUTLIER = 6.0  # larger activations are multiplied in half precision: LLM.int8()'s own threshold


def quantize_linears(
    model: nn.Module, weights: Iterable[tuple[str, Tensor]], quantize: str, device: torch.device
) -> dict[str, Tensor]:
    """Replace the linear layers of `model.mllm` by quantised ones; return all other weights, on the device.

    `weights` are read one at a time, on the CPU, so at most one quantised weight is held in full precision. A weight
    that does not fit its layer is returned with the others.
    """
    linears = {
        f"{name}.weight": (name, module)
        for name, module in model.named_modules()
        if name.startswith(f"{PART}.") and isinstance(module, nn.Linear)
    }
    rest: dict[str, Tensor] = {}
    for name, tensor in weights:
        place, linear = linears.get(name, ("", None))
        if linear is None or linear.weight.shape != tensor.shape:
            rest[name] = tensor.to(device)
        else:
            model.set_submodule(place, _quantized(linear, tensor, quantize, device))
    return rest


def move(part: nn.Module, device: torch.device) -> None:
    """Move a part to a device, including the quantisation state of its layers."""
    for linear in part.modules():
        if isinstance(linear, nn.Linear) and type(linear) is not nn.Linear:  # a layer of bitsandbytes
            made: Any = linear
            made.weight = linear.weight.to(device)  # with the scales of 4-bit blocks; `part.to` would lose them
            if hasattr(made, "state"):
                made.weight.CB = None
                made.state.CB, made.state.SCB = made.weight.data, made.state.SCB.to(device)
    part.to(device)


def _quantized(linear: nn.Linear, weight: Tensor, quantize: str, device: torch.device) -> nn.Module:
    """Return a quantised layer with the sizes of a linear one and this weight; its bias is set later."""
    # bitsandbytes logs at each call that inputs are cast, and that it downloads no kernels from the Hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit  # an optional extra

    sizes = (linear.in_features, linear.out_features)
    made: Any
    if quantize == "8bit":
        made = Linear8bitLt(*sizes, has_fp16_weights=False, threshold=OUTLIER, device="meta")
        made.weight = Int8Params(weight, requires_grad=False).to(device)
        made.init_8bit_state()
    else:
        made = Linear4bit(
            *sizes, quant_type="nf4", compute_dtype=weight.dtype, compress_statistics=False, device="meta"
        )
        made.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False).to(device)
        # The layout that the first call on some CPUs would change to cannot be moved to another device.
        made.support_avx512bf16_for_cpu = False
    return made.eval()
