"""An image decoder with its own text encoder: what text-only baselines train and generate with.

Shape letters: B images, S d conditioning length and width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from kgcli.config import MAX_BATCH, SamplingConfig
from kgcli.data.images import open_image, to_vae_pixels
from kgcli.errors import IncompatibleError, MissingError, UsageError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.settings import check_sampling, sampling_facts
from kgcli.inference.denoise import denoise, make_sd, seeded
from kgcli.model.randomness import StepRandom
from kgcli.runtime import choose_device, use_one_thread
from kgcli.weights.decoder import load_decoder
from kgcli.weights.folder import RENAMED_REPOSITORIES, check_diffusers_part
from kgcli.weights.hashes import hash_files
from kgcli.weights.hub import is_hub_id, snapshot
from kgcli.weights.shipped import DEFAULT_MODEL

PARTS = ("unet", "vae", "text_encoder")
SD_WIDTH = 768  # cross-attention width of Stable Diffusion v1; narrower decoders are small ones
DTYPES = ("auto", "float32", "bfloat16")  # of the forward pass; weights stay float32
# Sampling defaults. Full size: the protocol of DreamBench (`kg eval dreambench`); small: near the shipped model's
# settings, and fixed, so that scores stay comparable.
SAMPLING = {
    "sd": SamplingConfig(num_inference_steps=100, guidance_scale=7.5, guidance_rescale=0.0, scheduler="dpm++"),
    "small": SamplingConfig(num_inference_steps=25, guidance_scale=2.5, guidance_rescale=0.7, scheduler="ddim"),
}


@dataclass(frozen=True, kw_only=True)
class DecoderFolder:
    """A decoder before it is loaded: a diffusers folder with all its parts."""

    path: Path
    width: int  # cross-attention width of its U-Net
    size: int  # pixels, square, that it was trained for

    @property
    def scale(self) -> str:
        """Set of defaults that suits it: sd or small."""
        return "sd" if self.width >= SD_WIDTH else "small"

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of its weights."""
        return hash_files([file for part in PARTS for file in sorted((self.path / part).glob("*.safetensors"))])

    def sampling(self, options: MethodOptions) -> SamplingConfig:
        """Return its sampling settings, with defaults where no option is given. Raises: UsageError for invalid ones."""
        own = SAMPLING[self.scale].model_copy(update={"width": self.size, "height": self.size})
        return check_sampling(options.sampling).over(own)

    def sampling_facts(self, options: MethodOptions) -> dict[str, Any]:
        """Return the sampling settings as run files hold them: one size, since these images are square."""
        facts = sampling_facts(self.sampling(options))
        size = facts.pop("width")
        del facts["height"]
        return {**facts, "size": size, "negative_prompt": options.negative_prompt}


def find_decoder(location: str | None, offline: bool) -> DecoderFolder:
    """Find the decoder in a folder or of a Hub id (None: the shipped one) and check that it has a text encoder.

    Raises: MissingError; IncompatibleError for a single file, which has no text encoder.
    """
    path = DEFAULT_MODEL / "decoder" if location is None else Path(location).expanduser()
    if path.is_file():
        raise IncompatibleError(f"{path} is a single file; this method needs a diffusers folder with a text encoder")
    if not path.is_dir():
        if location is None or not is_hub_id(location):
            raise MissingError(f"there is no decoder folder {path}")
        path = snapshot(RENAMED_REPOSITORIES.get(location, location), files=DECODER_FILES, offline=offline)
    configs = {part: check_diffusers_part(path, part) for part in PARTS}
    width, blocks = configs["unet"].get("cross_attention_dim"), configs["vae"].get("block_out_channels")
    latent_size = configs["unet"].get("sample_size")
    if not isinstance(width, int) or not isinstance(latent_size, int) or not isinstance(blocks, list):
        raise IncompatibleError(f"{path} does not have the layout of Stable Diffusion v1")
    if configs["text_encoder"].get("hidden_size") != width:
        raise IncompatibleError(
            f"the text encoder of {path} has width {configs['text_encoder'].get('hidden_size')}, "
            f"but the cross-attention of its U-Net has {width}"
        )
    return DecoderFolder(path=path, width=width, size=latent_size * 2 ** (len(blocks) - 1))


DECODER_FILES = (
    "*/config.json",
    "scheduler/*",
    "tokenizer/*",
    "text_encoder/model.safetensors",
    *(f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")),
)


class TextDecoder:
    """U-Net, VAE, text encoder and tokenizer of one folder, frozen, on the device they work on."""

    def __init__(self, folder: DecoderFolder, options: MethodOptions) -> None:
        self.device = torch.device(choose_device(options.device))
        use_one_thread(self.device.type)
        self.dtype = read_dtype(options.dtype)
        self.diffusion = load_decoder(folder.path, local_files_only=True).to(self.device)
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder.path / "tokenizer", local_files_only=True)
        except (OSError, ValueError) as error:
            raise MissingError(
                f"{folder.path} does not have a usable tokenizer: {str(error).splitlines()[0]}"
            ) from None
        self.text_encoder = CLIPTextModel.from_pretrained(
            folder.path / "text_encoder", torch_dtype=torch.float32, local_files_only=True
        )
        self.text_encoder.requires_grad_(False).eval().to(self.device)
        self.sampling = folder.sampling(options)
        self.negative_prompt = options.negative_prompt
        self.diffusion.check_size(*self.sampling.size)
        self.pipeline = make_sd(self.diffusion)

    def computing(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which computations run at the chosen precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Return token ids, (B, S), padded and cut to the text encoder's length."""
        length = self.text_encoder.config.max_position_embeddings
        found = self.tokenizer(
            list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return found.input_ids.to(self.device)

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Encode captions to conditioning, (B, S, d). Gradients reach trainable parameters of the text encoder."""
        return self.text_encoder(self.tokens(captions)).last_hidden_state

    def moments(self, paths: Sequence[Path], *, mirrored: bool = False) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latents of image files; with `mirrored`, of their mirror images too.

        Raises: ImageError.
        """
        means, logvars = [], []
        for path in paths:
            pixels = torch.from_numpy(to_vae_pixels(open_image(path, srgb=False), self.sampling.size[0]))[None]
            pixels = pixels.to(self.device)
            for shown in (pixels, pixels.flip(-1)) if mirrored else (pixels,):
                mean, logvar = self.diffusion.moments(shown)
                means.append(mean)
                logvars.append(logvar)
        return torch.cat(means), torch.cat(logvars)

    def loss(self, moments: tuple[Tensor, Tensor], conditioning_BSd: Tensor, random: StepRandom) -> Tensor:
        """Return the noise loss of images drawn at random from `moments`, one for each row of the conditioning."""
        chosen = random.integers(len(moments[0])).to(self.device)
        latents = self.diffusion.sample_latents(moments[0][chosen], moments[1][chosen], random=random)
        return self.diffusion.noise_loss(latents, conditioning_BSd, random=random)

    @torch.no_grad()
    def generate(self, captions: Sequence[str], seeds: Sequence[int], **more: Any) -> list[Image.Image]:
        """Return an image per caption and seed: the same captions and seeds give the same pixels.

        `more` is passed to the diffusers pipeline, such as an IP-Adapter's image.
        """
        images: list[Image.Image] = []
        for start in range(0, len(captions), MAX_BATCH):
            rows = slice(start, start + MAX_BATCH)
            with self.computing():
                embeds, negative = (
                    self.encode(captions[rows]),
                    self.encode([self.negative_prompt] * len(captions[rows])),
                )
                generators = seeded(seeds[rows])
                images += denoise(self.pipeline, self.diffusion, embeds, negative, generators, self.sampling, **more)
        return images


def read_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name; auto is float32. Raises: UsageError."""
    if name not in DTYPES:
        raise UsageError(f"--dtype is {name}; methods that train take one of {', '.join(DTYPES)}")
    return torch.bfloat16 if name == "bfloat16" else torch.float32
