"""LoRA files and ControlNets on the decoder of a pipeline.

A ControlNet acts through a hook of the U-Net, so that the same pipeline samples with and without one, with all its
options (guidance rescale too, which diffusers' ControlNet pipeline lacks).

Shape letters: B rows of the U-Net's batch, X Y image height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kgcli.errors import IncompatibleError, MissingError
from kgcli.inference.adapters.control_maps import fit_to, make_map
from kgcli.inference.adapters.loras import Loras
from kgcli.inference.adapters.named import Adapters, Control, Source
from kgcli.inference.denoise import steered
from kgcli.inference.pipeline import KosmosGPipeline

if TYPE_CHECKING:  # imported when a ControlNet is used
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

KEPT_MAPS = 16  # control maps of the latest images


class Attachments:
    """Adapters of a pipeline's decoder; each is loaded once and kept for later images."""

    def __init__(self, pipeline: KosmosGPipeline, *, local_files_only: bool = False) -> None:
        self.pipeline = pipeline
        self.local_files_only = local_files_only
        self._loras = Loras(pipeline.sd)
        self._networks: dict[Source, ControlNetModel] = {}
        self._maps: dict[tuple[object, ...], Image.Image] = {}

    @contextmanager
    def on(self, adapters: Adapters, size: tuple[int, int]) -> Iterator[None]:
        """Attach these adapters within a context, for images of a size (width, height in pixels).

        Raises: MissingError, IncompatibleError.
        """
        self._loras.put_on(adapters.loras)
        if not adapters.controls:
            yield
            return
        from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

        networks = MultiControlNetModel([self._network(control.source) for control in adapters.controls])
        steer = _Steering(
            networks,
            [_to_tensor(self.control_map(control, size), self.pipeline) for control in adapters.controls],
            [control.scale for control in adapters.controls],
        )
        with steered(self.pipeline.decoder.unet, steer):
            yield

    def control_map(self, control: Control, size: tuple[int, int]) -> Image.Image:
        """Return the control map of a ControlNet at the size of the output image."""
        key = (control.kind, control.image.sha256, control.ready, control.maker, size)
        if key not in self._maps:
            image = fit_to(control.image.load(), size)
            maker = control.maker.location if control.maker else ""
            self._maps[key] = (
                image if control.ready else make_map(control.kind, image, maker, local_files_only=self.local_files_only)
            )
            while len(self._maps) > KEPT_MAPS:
                del self._maps[next(iter(self._maps))]
        return self._maps[key]

    def _network(self, source: Source) -> ControlNetModel:
        if source not in self._networks:
            network = load_controlnet(source.location, self.pipeline.decoder.unet.dtype, self.local_files_only)
            check_controlnet(network, self.pipeline, source.name)
            self._networks[source] = network.to(self.pipeline.device)
        return self._networks[source]


class _Steering:
    """Hook that adds the residuals of ControlNets to a U-Net."""

    def __init__(self, networks: MultiControlNetModel, maps: Sequence[Tensor], scales: Sequence[float]) -> None:
        self.networks = networks
        self.maps = maps
        self.scales = list(scales)

    def __call__(self, sample_BCHW: Tensor, timestep: Tensor, conditioning_BSd: Tensor) -> dict[str, Any]:
        """Return the additional arguments of the U-Net."""
        down, middle = self.networks(
            sample_BCHW,
            timestep,
            encoder_hidden_states=conditioning_BSd,
            controlnet_cond=[map_13XY.expand(len(sample_BCHW), -1, -1, -1) for map_13XY in self.maps],
            conditioning_scale=self.scales,
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def load_controlnet(location: str, dtype: torch.dtype, local_files_only: bool = False) -> ControlNetModel:
    """Load a ControlNet from a folder or Hub id.

    Raises: MissingError, IncompatibleError.
    """
    from diffusers.models.controlnets.controlnet import ControlNetModel

    try:
        network = ControlNetModel.from_pretrained(
            location, torch_dtype=dtype, use_safetensors=True, local_files_only=local_files_only
        )
    except OSError as error:
        raise MissingError(f"there is no ControlNet {location}, or it is damaged: {_first_line(error)}") from None
    except (ValueError, RuntimeError) as error:
        raise IncompatibleError(f"the ControlNet {location} cannot be used: {_first_line(error)}") from None
    return network.requires_grad_(False).eval()


def check_controlnet(network: ControlNetModel, pipeline: KosmosGPipeline, name: str) -> None:
    """Refuse a ControlNet made for another U-Net or VAE.

    Raises: IncompatibleError.
    """
    unet: Any = pipeline.decoder.unet
    # Block types are not compared: with or without cross-attention, their residuals have the same shapes.
    for size in ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block"):
        found, wanted = network.config[size], unet.config[size]
        if _plain(found) != _plain(wanted):
            raise IncompatibleError(f"the ControlNet {name} is for another decoder: {size} is {found}, not {wanted}")
    factor = 2 ** (len(network.config.conditioning_embedding_out_channels) - 1)
    if factor != pipeline.decoder.pixels_per_latent:
        raise IncompatibleError(
            f"the ControlNet {name} is for another decoder: it takes maps {factor} times as wide as the latents, "
            f"this decoder has {pipeline.decoder.pixels_per_latent} pixels per latent"
        )


def _to_tensor(image: Image.Image, pipeline: KosmosGPipeline) -> Tensor:
    """Return a map as a tensor in [0, 1], (1, 3, X, Y)."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    return pixels.to(pipeline.device).to(pipeline.decoder.unet.dtype) / 255


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
