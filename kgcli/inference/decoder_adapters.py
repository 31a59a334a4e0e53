"""LoRA files and ControlNets on the decoder of a pipeline.

A ControlNet steers through a hook of the U-Net, so that the pipeline that draws is the same with and without one, with
all it can do (guidance rescale too, which diffusers' ControlNet pipeline does not know).

Shape letters: B rows of the U-Net's batch, X Y picture height and width.
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
from kgcli.inference.adapters import Adapters, Control, Source
from kgcli.inference.control_maps import fit_to, make_map
from kgcli.inference.denoise import steered
from kgcli.inference.loras import Loras
from kgcli.inference.pipeline import KosmosGPipeline

if TYPE_CHECKING:  # loaded when a ControlNet is asked for
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel


class Attachments:
    """What is put on a pipeline's decoder; all that was loaded once is kept for the pictures that follow."""

    def __init__(self, pipeline: KosmosGPipeline, *, local_files_only: bool = False) -> None:
        self.pipeline = pipeline
        self.local_files_only = local_files_only
        self._loras = Loras(pipeline.sd)
        self._networks: dict[Source, ControlNetModel] = {}
        self._maps: dict[tuple[object, ...], Image.Image] = {}

    @contextmanager
    def on(self, adapters: Adapters, size: tuple[int, int]) -> Iterator[None]:
        """The decoder with these on it, for pictures of a size (width, height in pixels).

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
        """What a ControlNet follows, at the size that is drawn."""
        key = (control.kind, control.picture.sha256, control.ready, control.maker, size)
        if key not in self._maps:
            picture = fit_to(control.picture.load(), size)
            maker = control.maker.location if control.maker else ""
            self._maps[key] = (
                picture
                if control.ready
                else make_map(control.kind, picture, maker, local_files_only=self.local_files_only)
            )
        return self._maps[key]

    def _network(self, source: Source) -> ControlNetModel:
        if source not in self._networks:
            network = load_controlnet(source.location, self.pipeline.decoder.unet.dtype, self.local_files_only)
            check_controlnet(network, self.pipeline, source.name)
            self._networks[source] = network.to(self.pipeline.device)
        return self._networks[source]


class _Steering:
    """The residuals that ControlNets add to the features of a U-Net."""

    def __init__(self, networks: MultiControlNetModel, maps: Sequence[Tensor], scales: Sequence[float]) -> None:
        self.networks = networks
        self.maps = maps
        self.scales = list(scales)

    def __call__(self, sample_BCHW: Tensor, timestep: Tensor, conditioning_BSd: Tensor) -> dict[str, Any]:
        """Return further arguments of the U-Net."""
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
    """The ControlNet of a folder or Hub id.

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
    """Refuse a ControlNet that was made for another U-Net or VAE.

    Raises: IncompatibleError.
    """
    unet: Any = pipeline.decoder.unet
    # Not the kinds of its blocks: whether they attend to the prompt or not, they give residuals of the same shapes.
    for size in ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block"):
        found, wanted = network.config[size], unet.config[size]
        if _plain(found) != _plain(wanted):
            raise IncompatibleError(f"the ControlNet {name} is for another decoder: {size} is {found}, not {wanted}")
    factor = 2 ** (len(network.config.conditioning_embedding_out_channels) - 1)
    if factor != pipeline.decoder.pixels_per_latent:
        raise IncompatibleError(
            f"the ControlNet {name} is for another decoder: it reads maps {factor} times as wide as the latents, here "
            f"they are {pipeline.decoder.pixels_per_latent} times as wide"
        )


def _to_tensor(picture: Image.Image, pipeline: KosmosGPipeline) -> Tensor:
    """A map in [0, 1], (1, 3, X, Y)."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None]
    return pixels.to(pipeline.device).to(pipeline.decoder.unet.dtype) / 255


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
