"""A folder of golden data: its cases, its tiny models, and the comparison with what we compute.

The folder is KG_PARITY_DIR, or the copy beside this file. Its tiny/config.json says every dimension; nothing of
them is written here.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from kgcli.config import AlignerConfig, MLLMConfig, ModelConfig, ResamplerConfig, SpecialIds, VisionConfig
from kgcli.model.diffusion import Diffusion
from kgcli.model.kosmosg import KosmosG
from kgcli.weights.published.names import decoder_weights, from_published
from kgcli.weights.safetensors import assign_weights

RTOL = 1e-4  # of a tensor's largest absolute value
FOLDER = Path(os.environ.get("KG_PARITY_DIR") or Path(__file__).parent / "fixtures").resolve()
TINY = FOLDER / "tiny"
WORST: dict[str, float] = {}  # case and tensor -> relative error, of everything compared in this run


def tiny_files(pattern: str) -> list[Path]:
    """The files of the tiny models."""
    return sorted(TINY.glob(pattern))


def top_files(pattern: str) -> list[Path]:
    """The files that hold for full size."""
    return sorted(FOLDER.glob(pattern))


def has_prefix(stem: str, prefix: str) -> bool:
    """Whether a file is a case of this kind: `prefix` itself or `prefix_*`."""
    return stem == prefix or stem.startswith(f"{prefix}_")


@cache
def settings() -> dict[str, Any]:
    """tiny/config.json."""
    return json.loads((TINY / "config.json").read_text("utf-8"))


def model_config() -> ModelConfig:
    """Our configuration with the sizes of the golden models."""
    sizes = settings()
    vision, mllm, connector, aligner = (sizes[part] for part in ("vision", "mllm", "connector", "aligner"))
    vision_fields = ("image_size", "patch_size", "width", "num_heads", "num_layers", "mlp_ratio", "activation")
    return ModelConfig(
        vision=VisionConfig(**{field: vision[field] for field in vision_fields}),
        resampler=ResamplerConfig(num_queries=connector["num_latent_queries"], num_heads=connector["num_heads"]),
        mllm=MLLMConfig(
            vocab_size=mllm["vocab_size"],
            width=mllm["hidden_size"],
            num_layers=mllm["num_layers"],
            num_heads=mllm["num_heads"],
            ffn_width=mllm["ffn_dim"],
        ),
        aligner=AlignerConfig(
            width=aligner["dim"],
            num_heads=aligner["num_heads"],
            ffn_width=aligner["ffn_dim"],
            num_layers=aligner["num_layers_each"],
            num_queries=aligner["num_queries"],
            max_positions=aligner["max_positions"],
        ),
        special_ids=SpecialIds(**sizes["special_ids"]),
    )


@cache
def published_weights(name: str) -> dict[str, Tensor]:
    """A published-format state dict of the folder: align or final."""
    return load_file(TINY / f"{name}_weights.safetensors")


def load_model(name: str) -> KosmosG:
    """A golden model in our code, in evaluation mode; a new one each time, so that gradients never mix."""
    weights = from_published(published_weights(name))
    model = KosmosG(model_config(), with_aligner_decoder=any(key.startswith("aligner.decoder.") for key in weights))
    assign_weights(model, {key: tensor.clone() for key, tensor in weights.items()}, source=f"{name}_weights")
    return model.eval()


def load_diffusion() -> Diffusion:
    """The golden U-Net, VAE and training schedule."""
    unet_weights, vae_weights = decoder_weights(published_weights("final"))
    unet = UNet2DConditionModel(**settings()["unet"])
    vae = AutoencoderKL(**settings()["vae"], scaling_factor=settings()["vae_scaling_factor"])
    assign_weights(unet, unet_weights, source="the golden U-Net")
    assign_weights(vae, vae_weights, source="the golden VAE")
    schedule = {key: value for key, value in settings()["training_noise_scheduler"].items() if key != "class_name"}
    # Stable Diffusion's own settings have these two as well; diffusers warns where they are absent.
    return Diffusion(unet, vae, {"steps_offset": 1, "clip_sample": False} | schedule)


def check_case(path: Path, computed: dict[str, Tensor], inputs: set[str]) -> None:
    """Hold every tensor of a file that is no input against what we computed."""
    golden = load_file(path)
    unknown = sorted(set(golden) - set(computed) - inputs)
    assert not unknown, f"{path.name} holds tensors that nothing here checks: {unknown}"
    errors = {name: relative_error(computed[name], golden[name]) for name in golden if name not in inputs}
    WORST.update({f"{path.stem}: {name}": error for name, error in errors.items()})
    wrong = {name: error for name, error in errors.items() if not error <= RTOL}  # NaN is wrong too
    assert not wrong, f"{path.name} is off by more than {RTOL}: {wrong}"


def relative_error(ours: Tensor, golden: Tensor) -> float:
    """Largest difference over the golden tensor's largest absolute value; whole numbers and masks must be equal."""
    assert ours.shape == golden.shape, f"{tuple(ours.shape)} is not {tuple(golden.shape)}"
    if not golden.is_floating_point():
        return 0.0 if torch.equal(ours.to(golden.dtype), golden) else float("inf")
    if golden.numel() == 0:
        return 0.0
    difference = (ours.detach().double() - golden.double()).abs().max().item()
    scale = golden.double().abs().max().item()
    return difference / scale if scale else difference
