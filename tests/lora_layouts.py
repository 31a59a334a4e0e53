"""LoRA files in the layouts that users have, each with the change of the U-Net's weights that it stands for.

A layout is a function of a `Maker`; it returns the file's tensors, the changes by parameter (or by layer: its weight),
and the file's metadata. The changes are computed here, by the formulas of the programs that wrote such files.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")


@dataclass
class Layout:
    tensors: dict[str, Tensor]
    changes: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, object] | None = None  # adapter_config.json beside the file


class Maker:
    """Random factors for the layers of one U-Net."""

    def __init__(self, weights: Mapping[str, Tensor], seed: int) -> None:
        self.weights = dict(weights)
        self.random = torch.Generator().manual_seed(seed)
        layers = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
        self.attention = [layer for layer in layers if layer.endswith(ATTENTION)]
        self.convolutions = [layer for layer in layers if "resnets" in layer and layer.endswith(("conv1", "conv2"))]
        self.norm = next(layer for layer in layers if layer.endswith("transformer_blocks.0.norm1"))
        self.group_norm = next(layer for layer in layers if layer.endswith("resnets.0.norm1"))

    def weight(self, layer: str) -> Tensor:
        return self.weights[f"{layer}.weight"]

    def normal(self, *shape: int, size: float = 1.0) -> Tensor:
        return size * torch.randn(shape, generator=self.random)

    def factors(self, layers, rank=2, size=0.3) -> dict[str, tuple[Tensor, Tensor]]:
        """Down and up of each layer."""
        found = {}
        for layer in layers:
            outputs, *inputs = self.weight(layer).shape
            r = rank(layer) if callable(rank) else rank
            ones = [1] * (len(inputs) - 1)
            found[layer] = (self.normal(r, *inputs, size=size), self.normal(outputs, r, *ones, size=size))
        return found


def product(down: Tensor, up: Tensor) -> Tensor:
    return torch.einsum("or,ri...->oi...", up.flatten(1), down)


def kohya_name(layer: str) -> str:
    return "lora_unet_" + layer.replace(".", "_")


def kohya(factors, alpha=None) -> dict[str, Tensor]:
    found = {}
    for layer, (down, up) in factors.items():
        name = kohya_name(layer)
        found |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            found[f"{name}.alpha"] = torch.tensor(float(alpha(layer) if callable(alpha) else alpha))
    return found


def diffusers(factors, prefix="unet.", infix="") -> dict[str, Tensor]:
    return {
        f"{prefix}{layer}.lora_{letter}{infix}.weight": tensor
        for layer, pair in factors.items()
        for letter, tensor in zip("AB", pair, strict=True)
    }


def merged(factors, scale=1.0) -> dict[str, Tensor]:
    return {layer: (scale(layer) if callable(scale) else scale) * product(*pair) for layer, pair in factors.items()}


def peft_header(prefix="unet.", **config) -> dict[str, str]:
    return {"format": "pt", "lora_adapter_metadata": json.dumps({f"{prefix}{k}": v for k, v in config.items()})}


def kohya_one_alpha(m):
    factors = m.factors(m.attention, 4)
    return Layout(kohya(factors, 2), merged(factors, 0.5), {"ss_network_alpha": "64"})


def kohya_no_alpha(m):
    factors = m.factors(m.attention)
    return Layout(kohya(factors), merged(factors))


def mixed_ranks(m):
    factors = m.factors(m.attention, lambda layer: 1 if "attn1" in layer else 3)
    return Layout(diffusers(factors), merged(factors))


def block_alphas(m):
    factors = m.factors(m.attention, 4)

    def alpha(layer):
        return 1 if layer.startswith("down") else 8

    return Layout(kohya(factors, alpha), merged(factors, lambda layer: alpha(layer) / 4))


def resized(m):
    def rank(layer):
        return 1 + zlib.crc32(layer.encode()) % 4

    factors = m.factors(m.attention, rank)
    return Layout(kohya(factors, lambda layer: rank(layer) / 2), merged(factors, 0.5))


def locon_two_alphas(m):
    layers = m.attention[:4] + m.convolutions

    def rank(layer):
        return 2 if "resnets" in layer else 4

    def alpha(layer):
        return 1 if "resnets" in layer else 3

    factors = m.factors(layers, rank, 0.2)
    return Layout(kohya(factors, alpha), merged(factors, lambda layer: alpha(layer) / rank(layer)))


def ends(m):
    layers = ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"]
    factors = m.factors(layers, size=0.2)
    return Layout(kohya(factors, 2), merged(factors))


def samplers(m):
    layers = [
        name.removesuffix(".weight")
        for name in m.weights
        if name.endswith("weight")
        and any(part in name for part in ("samplers", "conv_shortcut", "time_emb_proj", "proj_"))
    ]
    factors = m.factors(layers, size=0.2)
    return Layout(kohya(factors, 2), merged(factors))


def flat_kernels(m):
    """1 x 1 convolutions whose factors were saved as matrices."""
    layers = [n.removesuffix(".weight") for n, w in m.weights.items() if w.ndim == 4 and w.shape[-1] == 1]
    factors = m.factors(layers, size=0.2)
    flat = {layer: (down.flatten(1), up.flatten(1)) for layer, (down, up) in factors.items()}
    return Layout(kohya(flat, 2), merged(factors))


def ldm_names(m):
    """The names of the original code, of this U-Net: one resnet in each down block, two in each up block."""
    factors, tensors = m.factors(m.attention), {}
    for layer, (down, up) in factors.items():
        block, inner = layer.split(".attentions.")
        number, rest = inner.split(".", 1)
        side, _, index = block.partition(".")
        place = {
            "down_blocks": f"input_blocks_{int(index or 0) * 2 + int(number) + 1}_1",
            "mid_block": "middle_block_1",
        }
        place["up_blocks"] = f"output_blocks_{int(index or 0) * 2 + int(number)}_1"
        name = f"lora_unet_{place[side]}_{rest.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    return Layout(tensors, merged(factors))


def old_diffusers(m):
    factors, tensors = m.factors(m.attention), {}
    for layer, (down, up) in factors.items():
        base, _, last = layer.removesuffix(".0").rpartition(".")
        tensors[f"{base}.processor.{last}_lora.down.weight"] = down
        tensors[f"{base}.processor.{last}_lora.up.weight"] = up
    return Layout(tensors, merged(factors))


def adapter_name_in_names(m):
    factors = m.factors(m.attention)
    return Layout(diffusers(factors, infix=".default"), merged(factors))


def header_alpha(m):
    factors = m.factors(m.attention, 4)
    return Layout(diffusers(factors), merged(factors, 2.0), peft_header(r=4, lora_alpha=8, peft_type="LORA"))


def header_pattern(m):
    factors = m.factors(m.attention, 4)
    header = peft_header(r=4, lora_alpha=4, alpha_pattern={"attn2.to_k": 8, r"^down_blocks.*\.attn1\.to_q": 2})

    def scale(layer):
        if layer.endswith("attn2.to_k"):
            return 2.0
        return 0.5 if layer.startswith("down_blocks") and layer.endswith("attn1.to_q") else 1.0

    return Layout(diffusers(factors), merged(factors, scale), header)


def header_rslora(m):
    factors = m.factors(m.attention, 4)
    return Layout(diffusers(factors), merged(factors, 2.0), peft_header(r=4, lora_alpha=4, use_rslora=True))


def header_plain_alpha(m):
    factors = m.factors(m.attention, 4)
    return Layout(diffusers(factors), merged(factors, 0.25), {"alpha": "1", "r": "4"})


def header_beside_alphas(m):
    """Alphas among the tensors win over the header."""
    factors = m.factors(m.attention, 4)
    return Layout(kohya(factors, 2), merged(factors, 0.5), peft_header(r=4, lora_alpha=64))


def peft_folder(m):
    factors = m.factors(m.attention, 4)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["to_q"]}
    return Layout(diffusers(factors, "base_model.model."), merged(factors, 2.0), config=config)


def half_precision(m):
    factors = {layer: (a.bfloat16(), b.bfloat16()) for layer, (a, b) in m.factors(m.attention, 4).items()}
    exact = {layer: (a.float(), b.float()) for layer, (a, b) in factors.items()}
    return Layout(kohya(factors, 2), merged(exact, 0.5))


def dora(m, columns=False):
    """LyCORIS' DoRA: magnitudes of rows, or as older files have them of columns."""
    factors = m.factors(m.attention, 4)
    tensors, changes = kohya(factors, 2), {}
    for layer, pair in factors.items():
        weight = m.weight(layer)
        changed = weight + 0.5 * product(*pair)
        norm = changed.norm(dim=0 if columns else 1, keepdim=True)
        magnitude = norm * (0.5 + torch.rand(norm.shape, generator=m.random))
        tensors[f"{kohya_name(layer)}.dora_scale"] = magnitude
        changes[layer] = changed * magnitude / norm - weight
    return Layout(tensors, changes)


def dora_of_columns(m):
    return dora(m, columns=True)


def dora_of_peft(m, layers=slice(None)):
    factors = m.factors(m.attention, 4)
    tensors, changes = diffusers(factors), merged(factors)
    for layer in m.attention[layers]:
        changed = m.weight(layer) + changes[layer]
        magnitude = changed.norm(dim=1) * (0.5 + torch.rand(len(changed), generator=m.random))
        tensors[f"unet.{layer}.lora_magnitude_vector"] = magnitude
        changes[layer] = changed * (magnitude / changed.norm(dim=1))[:, None] - m.weight(layer)
    return Layout(tensors, changes)


def dora_of_peft_in_some_layers(m):
    return dora_of_peft(m, slice(None, None, 2))


def loha(m):
    tensors, changes = {}, {}
    for layer in m.attention + m.convolutions:
        outputs, *inputs = m.weight(layer).shape
        columns = torch.Size(inputs).numel()
        first, second = ((m.normal(outputs, 2, size=0.4), m.normal(2, columns, size=0.4)) for _ in range(2))
        name = kohya_name(layer)
        tensors |= {f"{name}.hada_w1_a": first[0], f"{name}.hada_w1_b": first[1], f"{name}.alpha": torch.tensor(1.0)}
        tensors |= {f"{name}.hada_w2_a": second[0], f"{name}.hada_w2_b": second[1]}
        changes[layer] = 0.5 * ((first[0] @ first[1]) * (second[0] @ second[1])).reshape(m.weight(layer).shape)
    return Layout(tensors, changes)


def loha_tucker(m):
    tensors, changes = {}, {}
    for layer in m.convolutions:
        outputs, inputs, *kernel = m.weight(layer).shape
        halves = []
        for n in (1, 2):
            core, a, b = (
                m.normal(2, 2, *kernel, size=0.5),
                m.normal(2, outputs, size=0.5),
                m.normal(2, inputs, size=0.5),
            )
            parts = {"t": core, "a": a, "b": b}
            tensors |= {
                f"{kohya_name(layer)}.hada_{'t' + str(n) if k == 't' else f'w{n}_{k}'}": v for k, v in parts.items()
            }
            halves.append(torch.einsum("rskl,ro,si->oikl", core, a, b))
        changes[layer] = halves[0] * halves[1]
    return Layout(tensors, changes)


def lokr(m):
    tensors, changes = {}, {}
    for layer in m.attention:
        outputs, inputs = m.weight(layer).shape
        first, second = m.normal(2, 2, size=0.5), m.normal(outputs // 2, inputs // 2, size=0.3)
        name = kohya_name(layer)
        tensors |= {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second, f"{name}.alpha": torch.tensor(7.0)}
        changes[layer] = torch.kron(first, second)  # whole factors have no alpha
    return Layout(tensors, changes)


def lokr_factored(m):
    tensors, changes = {}, {}
    for layer in m.attention + m.convolutions:
        outputs, inputs, *kernel = m.weight(layer).shape
        first = m.normal(2, 2, size=0.5)
        a, b = m.normal(outputs // 2, 2, size=0.5), m.normal(2, inputs // 2 * torch.Size(kernel).numel(), size=0.5)
        name = kohya_name(layer)
        tensors |= {f"{name}.lokr_w1": first, f"{name}.lokr_w2_a": a, f"{name}.lokr_w2_b": b}
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
        changes[layer] = 0.5 * torch.kron(first, a @ b).reshape(m.weight(layer).shape)
    return Layout(tensors, changes)


def tucker(m):
    tensors, changes = {}, {}
    for layer in m.convolutions:
        outputs, inputs, *kernel = m.weight(layer).shape
        down, mid, up = (
            m.normal(2, inputs, 1, 1),
            m.normal(2, 2, *kernel, size=0.3),
            m.normal(outputs, 2, 1, 1, size=0.3),
        )
        name = kohya_name(layer)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_mid.weight": mid, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
        changes[layer] = 0.5 * torch.einsum("or,rskl,si->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    return Layout(tensors, changes)


def differences(m):
    """Whole differences of weights and biases beside low-rank layers."""
    factors = m.factors(m.attention)
    tensors, changes = kohya(factors, 2), merged(factors)
    for layer in m.convolutions:
        weight, bias = m.normal(*m.weight(layer).shape, size=0.1), m.normal(len(m.weight(layer)), size=0.5)
        tensors |= {f"{kohya_name(layer)}.diff": weight, f"{kohya_name(layer)}.diff_b": bias}
        changes |= {layer: weight, f"{layer}.bias": bias}
    return Layout(tensors, changes)


def norms(m):
    tensors, changes = {}, {}
    for layer in (m.norm, m.group_norm):
        for letter, parameter in (("w", "weight"), ("b", "bias")):
            change = m.normal(*m.weights[f"{layer}.{parameter}"].shape)
            tensors[f"{kohya_name(layer)}.{letter}_norm"] = changes[f"{layer}.{parameter}"] = change
    return Layout(tensors, changes)


def bias_of_peft(m):
    factors = m.factors(m.attention, 4)
    outs = [layer for layer in m.attention if layer.endswith(".to_out.0")]
    biases = {layer: m.normal(len(m.weight(layer))) for layer in outs}
    tensors = diffusers(factors) | {f"unet.{layer}.lora_B.bias": bias for layer, bias in biases.items()}
    changes = merged(factors, 2.0) | {f"{layer}.bias": 2.0 * bias for layer, bias in biases.items()}
    return Layout(tensors, changes, peft_header(r=4, lora_alpha=8, lora_bias=True))


LAYOUTS: dict[str, Callable[[Maker], Layout]] = {
    one.__name__: one
    for one in (
        kohya_one_alpha, kohya_no_alpha, mixed_ranks, block_alphas, resized, locon_two_alphas, ends, samplers,
        flat_kernels, ldm_names, old_diffusers, adapter_name_in_names, header_alpha, header_pattern, header_rslora,
        header_plain_alpha, header_beside_alphas, peft_folder, half_precision, dora, dora_of_columns, dora_of_peft,
        dora_of_peft_in_some_layers, loha, loha_tucker, lokr, lokr_factored, tucker, differences, norms, bias_of_peft,
    )
}  # fmt: skip
