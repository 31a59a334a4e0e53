"""The frozen image decoder: U-Net, VAE and noise schedule of any diffusers directory with the SD v1.x layout.

Shape letters: B batch, C latent channels, H W latent height and width, S d conditioning length and width,
X Y picture height and width in pixels.

Source: latent diffusion (arXiv:2112.10752).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError
from torch import Tensor, nn

from kgcli.errors import IncompatibleError, MissingError
from kgcli.model.randomness import StepRandom

WEIGHTS_STEM = "diffusion_pytorch_model"
HALF_VARIANT = "fp16"  # what diffusers calls weights stored in half precision
HALF_DTYPES = (torch.float16, torch.bfloat16)
Part = TypeVar("Part", UNet2DConditionModel, AutoencoderKL)
# Noisy latents, timesteps and conditioning to further arguments of the U-Net: what a ControlNet says of them.
Steer = Callable[[Tensor, Tensor, Tensor], Mapping[str, Any]]


class Diffusion(nn.Module):
    """Draws what a conditioning says. Nothing in it trains unless a stage asks for it."""

    def __init__(
        self, unet: UNet2DConditionModel, vae: AutoencoderKL, scheduler_config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.unet = unet
        self.vae = vae
        self.scheduler_config = dict(scheduler_config or {})
        # Training adds noise by this schedule whichever sampler the directory names.
        self.noise_scheduler = DDPMScheduler.from_config(self.scheduler_config)
        self.requires_grad_(False).eval()

    @classmethod
    def load(
        cls,
        source: Path | str,
        *,
        dtype: torch.dtype = torch.float32,
        local_files_only: bool = False,
        variant: str | None = None,
        sizes: Path | str | None = None,
    ) -> Diffusion:
        """The decoder of a diffusers folder, a Hub id or one .safetensors file.

        A file holds weights alone, under the names of any program that reads Stable Diffusion: `sizes` is a diffusers
        folder whose config.json files say what they belong to. Without `variant`, half precision files are taken
        where half precision is asked for, or where there are no others.

        Raises:
            MissingError: the folder or a file is not there or is damaged.
            IncompatibleError: the weights do not fit the sizes stored beside them.
        """
        if isinstance(source, Path) and not source.exists():
            raise MissingError(f"there is no decoder folder {source}")
        if Path(source).is_file():
            assert sizes is not None, "a single file needs a folder of sizes"
            unet = _load_from_file(UNet2DConditionModel, source, "unet", dtype, sizes)
            vae = _load_from_file(AutoencoderKL, source, "vae", dtype, sizes)
            return cls(unet, vae, _load_scheduler_config(sizes, local_files_only=True))
        unet = _load_part(UNet2DConditionModel, source, "unet", dtype, local_files_only, variant)
        vae = _load_part(AutoencoderKL, source, "vae", dtype, local_files_only, variant)
        return cls(unet, vae, _load_scheduler_config(source, local_files_only))

    @property
    def pixels_per_latent(self) -> int:
        """How many pixels one place of the latents stands for, across and down."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def check_conditioning(self, width: int) -> None:
        """See that the U-Net attends to vectors of this width.

        Raises:
            IncompatibleError: it attends to others.
        """
        expected = self.unet.config.cross_attention_dim
        if expected != width:
            raise IncompatibleError(
                f"the decoder attends to vectors of width {expected}, this model makes {width}; "
                "choose a decoder of the family the aligner was trained for"
            )

    def check_size(self, width: int, height: int) -> None:
        """Refuse a size in pixels that the latents cannot have.

        Raises: IncompatibleError.
        """
        factor = self.pixels_per_latent
        if width % factor or height % factor:
            raise IncompatibleError(f"{width} x {height} pixels do not divide by this decoder's factor of {factor}")

    def latents(
        self, pixels_B3XY: Tensor, *, random: StepRandom | None = None, eps_BCHW: Tensor | None = None
    ) -> Tensor:
        """One draw of the latents of pictures in [-1, 1], scaled for the U-Net."""
        return self.sample_latents(*self.moments(pixels_B3XY), random=random, eps_BCHW=eps_BCHW)

    @torch.no_grad()
    def moments(self, pixels_B3XY: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, (B, C, H, W) each: all that a cache need keep of a picture."""
        posterior = self.vae.encode(pixels_B3XY.to(self.vae.dtype)).latent_dist
        return posterior.mean, posterior.logvar

    def sample_latents(
        self,
        mean_BCHW: Tensor,
        logvar_BCHW: Tensor,
        *,
        random: StepRandom | None = None,
        eps_BCHW: Tensor | None = None,
    ) -> Tensor:
        """One draw from the moments, scaled for the U-Net; `eps_BCHW` stands for what would be drawn."""
        if eps_BCHW is None:
            eps_BCHW = _normal_like(mean_BCHW, random)
        return self.vae.config.scaling_factor * (mean_BCHW + torch.exp(0.5 * logvar_BCHW) * eps_BCHW)

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Pictures in [0, 1], (B, 3, X, Y), of the U-Net's latents."""
        unscaled_BCHW = latents_BCHW.to(self.vae.dtype) / self.vae.config.scaling_factor
        return (self.vae.decode(unscaled_BCHW).sample.float() / 2 + 0.5).clamp(0, 1)

    def noise_loss(
        self,
        latents_BCHW: Tensor,
        conditioning_BSd: Tensor,
        *,
        random: StepRandom | None = None,
        noise_BCHW: Tensor | None = None,
        timesteps_B: Tensor | None = None,
        weight_BHW: Tensor | None = None,
        steer: Steer | None = None,
    ) -> Tensor:
        """Squared error of the U-Net's prediction, a mean per example and then over the batch.

        Its gradient passes through the frozen U-Net into the conditioning. Noise and timesteps that are not given
        are drawn from `random`; `weight_BHW` multiplies the error of each place.
        """
        if noise_BCHW is None:
            noise_BCHW = _normal_like(latents_BCHW, random)
        if timesteps_B is None:
            timesteps_B = self._draw_timesteps(latents_BCHW, random)
        noisy_BCHW = self.noise_scheduler.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        prediction_BCHW = self.predict(noisy_BCHW, timesteps_B, conditioning_BSd, steer)
        error_BCHW = (prediction_BCHW - self.target(latents_BCHW, noise_BCHW, timesteps_B).float()).square()
        if weight_BHW is not None:
            error_BCHW = error_BCHW * weight_BHW[:, None]
        return error_BCHW.flatten(start_dim=1).mean(dim=1).mean()

    def predict(
        self, noisy_BCHW: Tensor, timesteps_B: Tensor, conditioning_BSd: Tensor, steer: Steer | None = None
    ) -> Tensor:
        """What the U-Net says of noisy latents, in fp32; its meaning is the schedule's prediction type."""
        inputs = noisy_BCHW.to(self.unet.dtype), timesteps_B, conditioning_BSd.to(self.unet.dtype)
        return self.unet(*inputs, **(steer(*inputs) if steer else {})).sample.float()

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the U-Net should say."""
        kind = self.noise_scheduler.config.prediction_type
        if kind == "epsilon":
            return noise_BCHW
        if kind == "v_prediction":
            return self.noise_scheduler.get_velocity(latents_BCHW, noise_BCHW, timesteps_B)
        if kind == "sample":
            return latents_BCHW
        raise IncompatibleError(f"the decoder's prediction type {kind} is none of epsilon, v_prediction, sample")

    def _draw_timesteps(self, latents_BCHW: Tensor, random: StepRandom | None) -> Tensor:
        assert random is not None, "give random, or noise and timesteps"
        num_steps = self.noise_scheduler.config.num_train_timesteps
        return random.integers(num_steps).to(latents_BCHW.device)


def _normal_like(tensor: Tensor, random: StepRandom | None) -> Tensor:
    assert random is not None, "give random, or the noise itself"
    return random.normal(*tensor.shape[1:]).to(tensor)


def _load_part(
    kind: type[Part], source: Path | str, name: str, dtype: torch.dtype, local_files_only: bool, variant: str | None
) -> Part:
    variants = _variants(source, name, dtype, variant)
    for attempt, candidate in enumerate(variants, start=1):
        try:
            part, report = kind.from_pretrained(
                str(source),
                subfolder=name,
                torch_dtype=dtype,
                variant=candidate,
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=local_files_only,
            )
            break
        except OSError as error:
            if attempt < len(variants):
                continue
            raise MissingError(f"the decoder's {name} is not in {source} or is damaged: {_first_line(error)}") from None
        except ValueError as error:
            raise IncompatibleError(f"the decoder's {name} in {source} cannot be used: {_first_line(error)}") from None
    for fault in ("missing_keys", "unexpected_keys"):
        if report[fault]:
            listed = f"{len(report[fault])} {fault.replace('_keys', '')} weight(s), such as {sorted(report[fault])[0]}"
            raise IncompatibleError(f"the decoder's {name} in {source} does not fit its config.json: {listed}")
    return part


def _load_from_file(kind: type[Part], source: Path | str, name: str, dtype: torch.dtype, sizes: Path | str) -> Part:
    """One part of a file with all of them, by diffusers' own knowledge of other programs' names."""
    try:
        return kind.from_single_file(
            str(source), config=str(sizes), subfolder=name, torch_dtype=dtype, local_files_only=True
        )
    except (OSError, SafetensorError) as error:
        raise MissingError(f"the decoder's {name} is not in {source} or is damaged: {_first_line(error)}") from None
    except NotImplementedError:  # torch's word for a weight that no file gave a value
        raise IncompatibleError(
            f"the decoder's {name} in {source} does not fit the sizes of {sizes}: weights are missing"
        ) from None
    except (SingleFileComponentError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise IncompatibleError(f"the decoder's {name} in {source} cannot be used: {_first_line(error)}") from None


def _variants(source: Path | str, name: str, dtype: torch.dtype, variant: str | None) -> tuple[str | None, ...]:
    """The file variants to try in turn. A local folder is looked at; of a Hub id any may be absent."""
    if variant is not None:
        return (variant,)
    if not Path(source).is_dir():
        return (HALF_VARIANT, None) if dtype in HALF_DTYPES else (None, HALF_VARIANT)
    folder = Path(source) / name
    only_half = any(folder.glob(f"{WEIGHTS_STEM}.{HALF_VARIANT}*.safetensors")) and not (
        any(folder.glob(f"{WEIGHTS_STEM}.safetensors")) or any(folder.glob(f"{WEIGHTS_STEM}-*.safetensors"))
    )
    return (HALF_VARIANT if only_half else None,)


def _load_scheduler_config(source: Path | str, local_files_only: bool) -> dict[str, Any]:
    try:
        # Any scheduler class reads the file of any other.
        return dict(DDPMScheduler.load_config(str(source), subfolder="scheduler", local_files_only=local_files_only))
    except OSError as error:
        raise MissingError(f"the decoder's scheduler is not in {source} or is damaged: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
