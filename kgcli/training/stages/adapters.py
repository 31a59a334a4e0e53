"""The stages that train adapters of a frozen decoder: a ControlNet that follows edges, a LoRA of one style.

Both train on captions encoded by the decoder's own text encoder. The MLLM is aligned to the same space, so they work
with its prompts too.

Shape letters: B rows, C channels, H W latent height and width, S d conditioning length and width, X Y image sizes.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from kgcli.data.batch import Batch, Collator
from kgcli.data.images import to_square
from kgcli.data.pool import Pool
from kgcli.data.sample import Sample
from kgcli.errors import ConfigError
from kgcli.inference.adapters.control_maps import make_map
from kgcli.model.diffusion import Steer
from kgcli.training.preview import NUM_PREVIEW
from kgcli.training.stages.base import Setup
from kgcli.training.stages.unet import CaptionedStage
from kgcli.weights.decoder import WEIGHTS_STEM, load_decoder
from kgcli.weights.lora.header import LORA_NAME
from kgcli.weights.safetensors import assign_weights, check_weights

DECODER = "decoder"  # of init_from

# Channels of a ControlNet's map at each scale, from the image's down to the latents' of a VAE of factor 16; for a
# smaller factor the first ones are used.
MAP_CHANNELS = (16, 32, 64, 96, 128)


class MapCollator(Collator):
    """Captions, moments, and the canny map of each target, computed as by `kg generate --controlnet canny=`."""

    def __call__(self, samples: Iterable[Sample], rows: list[int]) -> Batch:
        samples, size = list(samples), self.image_size
        maps = [np.asarray(make_map("canny", to_square(sample.render(size).image, size))) for sample in samples]
        pixels = torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).float() / 255
        return dataclasses.replace(super().__call__(samples, rows), maps=pixels)


class Steering:
    """A ControlNet's residuals for the U-Net; rows of several conditionings take the maps in turn."""

    def __init__(self, controlnet: ControlNetModel, maps_B3XY: Tensor) -> None:
        self.controlnet = controlnet
        self.maps_B3XY = maps_B3XY

    def __call__(self, noisy_BCHW: Tensor, timesteps_B: Tensor, conditioning_BSd: Tensor) -> Mapping[str, Any]:
        maps_B3XY = self.maps_B3XY.repeat(len(noisy_BCHW) // len(self.maps_B3XY), 1, 1, 1)
        down, middle = self.controlnet(noisy_BCHW, timesteps_B, conditioning_BSd, maps_B3XY, return_dict=False)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


class AdapterStage(CaptionedStage):
    """A frozen decoder with its own text encoder, for which an adapter is trained."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.load_text(self.setup.source(DECODER))
        self.diffusion = load_decoder(self.setup.source(DECODER), local_files_only=True)
        self.options.check_timesteps(self.diffusion.num_train_timesteps)


class ControlNetStage(AdapterStage):
    """A ControlNet that starts as a copy of the U-Net's first half and follows canny maps; exports a diffusers folder.

    `parts.controlnet` changes the copy's configuration: blocks without attention make it small and independent of
    the prompt, which the U-Net still attends to. With `init_from.controlnet`, a diffusers folder, it continues from
    that folder's weights. Source: ControlNet (arXiv:2302.05543).

    Raises: MissingError, ConfigError; IncompatibleError where the start is of another configuration.
    """

    trains = ("controlnet.",)
    compiles = ("unet", "controlnet")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.controlnet = make_controlnet(
            self.diffusion.unet, setup.parts.get("controlnet", {}), self.diffusion.pixels_per_latent
        )
        if "controlnet" in setup.init_from:
            start = self.setup.read_weights("controlnet", f"{WEIGHTS_STEM}.safetensors")
            assign_weights(self.controlnet, start, source=f"init_from.controlnet: {setup.init_from['controlnet']}")
        self.to(memory_format=torch.channels_last)

    def collator(self, pool: Pool | None) -> Collator:
        return MapCollator(self.needs, self.setup.image_size, 0, clip_tokenizer=self.tokenizer, pool=pool)

    def parts(self) -> dict[str, list[nn.Module]]:
        return {**super().parts(), "controlnet": [self.controlnet]}

    def steer(self, batch: Batch) -> Steer:
        assert batch.maps is not None
        return Steering(self.controlnet, batch.maps)

    @torch.no_grad()
    def preview(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the maps, and below them the images generated from them."""
        assert batch.maps is not None and batch.clip_tokens is not None
        half = NUM_PREVIEW // 2
        few = dataclasses.replace(batch, maps=batch.maps[:half], clip_tokens=batch.clip_tokens[:half])
        return torch.cat([batch.maps[:half], super().preview(few, generator)])

    def export(self, folder: Path) -> None:
        self.controlnet.save_pretrained(folder)


class LoraStage(AdapterStage):
    """A LoRA of the U-Net that generates any prompt in the style of its data; exports a diffusers LoRA file.

    `parts.lora` is peft's configuration; its scale stays 1, because the file does not store it. With `init_from.lora`,
    the folder of an earlier run's result, it continues from that. Source: LoRA (arXiv:2106.09685).
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        settings = {"init_lora_weights": "gaussian", **self.setup.part("lora")}
        if settings.get("lora_alpha", settings.get("r")) != settings.get("r") or "r" not in settings:
            raise ConfigError("parts.lora needs r, the rank, and no other lora_alpha: the file does not store it")
        self.diffusion.unet.add_adapter(LoraConfig(**{**settings, "lora_alpha": settings["r"]}))
        if "lora" in setup.init_from:
            self._continue()
        self.diffusion.to(memory_format=torch.channels_last)
        self.trains = tuple(name for name, _ in self.named_parameters() if ".lora_" in name)

    def export(self, folder: Path) -> None:
        # peft's names: diffusers' older names cover attention alone, and it cannot read a file with both.
        weights = get_peft_model_state_dict(self.diffusion.unet)
        contiguous = {name: weight.contiguous() for name, weight in weights.items()}  # convolutions are channels-last
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=contiguous)

    def _continue(self) -> None:
        """Load what `export` wrote. Raises: MissingError; IncompatibleError for another rank or other layers."""
        start, unet = self.setup.read_weights("lora", LORA_NAME), self.diffusion.unet
        weights = {name.removeprefix("unet."): weight for name, weight in start.items()}
        shapes = {name: weight.shape for name, weight in get_peft_model_state_dict(unet).items()}
        found = {name: weight.shape for name, weight in weights.items()}
        check_weights(shapes, found, source=f"init_from.lora: {self.setup.init_from['lora']}")
        set_peft_model_state_dict(unet, weights)


def make_controlnet(unet: UNet2DConditionModel, changes: Mapping[str, Any], factor: int = 4) -> ControlNetModel:
    """Return a ControlNet for a U-Net of any size, with changed settings; copies all weights that still fit.

    Args:
        factor: pixels of the map per latent, across and down

    Raises:
        ConfigError: `changes` has an unknown setting.
    """
    known = inspect.signature(ControlNetModel.__init__).parameters
    for name in changes.keys() - known.keys():
        raise ConfigError(f"parts.controlnet.{name}: diffusers' ControlNetModel has no such setting")
    copied = {name: value for name, value in unet.config.items() if name in known}
    copied["conditioning_embedding_out_channels"] = MAP_CHANNELS[: factor.bit_length()]
    settings = {**copied, **changes}
    num_scales = len(settings["conditioning_embedding_out_channels"])
    if 2 ** (num_scales - 1) != factor:
        raise ConfigError(
            f"parts.controlnet.conditioning_embedding_out_channels has {num_scales} numbers, which halve the map "
            f"{num_scales - 1} times; a latent of this decoder is {factor} pixels wide: give {factor.bit_length()}"
        )
    controlnet = ControlNetModel(**settings)
    weights = unet.state_dict()
    controlnet.load_state_dict(
        {name: weights[name] for name in controlnet.state_dict() if name in weights}, strict=False
    )
    for layer in controlnet.controlnet_cond_embedding.modules():
        if isinstance(layer, nn.Conv2d):
            # Keeps the map's scale. diffusers' own start shrinks it and zeroes the last layer; the residuals' zero
            # convolutions alone suffice to leave the U-Net unchanged at first.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return controlnet
