"""An MLLM whose linear layers are held in 8 or 4 bits by bitsandbytes, each from the moment its weight is read.

8bit is LLM.int8(): whole numbers for each row of a weight and each token, outliers apart. 4bit is NF4 in blocks of 64.
Biases, norms and the word embedding stay as they are; so do vision tower, resampler and AlignerNet.

Source: LLM.int8() (arXiv:2208.07339); QLoRA (arXiv:2305.14314) for NF4.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

PART = "mllm"  # whose linear layers are quantised
OUTLIER = 6.0  # activations from here on are multiplied in half precision: LLM.int8()'s own threshold


def quantize_linears(
    model: nn.Module, weights: Iterable[tuple[str, Tensor]], quantize: str, device: torch.device
) -> dict[str, Tensor]:
    """Put quantised layers in place of the linear ones of `model.mllm`; return all other weights, on the device.

    `weights` come one at a time, on the CPU, and no more than one of the quantised is ever whole. One that does not fit
    its layer is returned with the others.
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
    """Take a part to a device, with what its 8-bit layers keep beside their weights."""
    for linear in part.modules():
        if isinstance(linear, nn.Linear) and type(linear) is not nn.Linear:  # one of bitsandbytes'
            made: Any = linear
            made.weight = linear.weight.to(device)  # with the scales of 4-bit blocks; `part.to` would lose them
            if hasattr(made, "state"):
                made.weight.CB = None
                made.state.CB, made.state.SCB = made.weight.data, made.state.SCB.to(device)
    part.to(device)


def _quantized(linear: nn.Linear, weight: Tensor, quantize: str, device: torch.device) -> nn.Module:
    """The layer of a linear one's sizes that holds a weight in few bits; its bias is still to come."""
    # It logs that inputs are cast, at each call, and that it will not fetch kernels from the Hub.
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
        # The layout it would change to at the first call on some CPUs cannot go to another device.
        made.support_avx512bf16_for_cpu = False
    return made.eval()
