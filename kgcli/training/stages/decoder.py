"""The stages of the nano base, a small Stable Diffusion: a VAE, a CLIP pair and a text-conditional U-Net.

Each exports folders that diffusers and transformers load by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from kgcli.config import Strict
from kgcli.data.batch import Batch, Collator
from kgcli.data.pool import Pool
from kgcli.data.sample import Sample
from kgcli.data.tokenizer import train_sentencepiece
from kgcli.model.diffusion import Diffusion, Steer
from kgcli.model.randomness import StepRandom
from kgcli.model.timesteps import stratified_timesteps
from kgcli.training.preview import preview_images
from kgcli.training.stages.base import Setup, Stage, Whole, alone
from kgcli.training.stages.start import copy_folder
from kgcli.weights.decoder import load_decoder
from kgcli.weights.safetensors import assign_weights

NUM_PREVIEW = 32  # images of a sample grid
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


class VaeOptions(Strict):
    """kl: weight of the mean KL divergence per latent number. edges: weight of the error of differences between
    neighbouring pixels, which keeps outlines sharp. crop: side in pixels of the random square of each
    image that it trains on; 0 takes the whole image."""

    kl: float = 1e-4
    edges: float = 0.5
    crop: int = 0


class ClipOptions(Strict):
    """locked_text: freeze the text encoder. projection: width of the shared space. clip_vocab,
    sentencepiece_vocab: pieces of the two tokenizers. captions: sentences that they are trained on."""

    locked_text: bool = False
    projection: int = 128
    clip_vocab: int = 1024
    sentencepiece_vocab: int = 800
    captions: int = 20000


class CaptionedOptions(Strict):
    """null_text: probability of the empty caption. subject: extra weight of the error inside subjects, where the data
    have masks. stratified: timesteps spread evenly over each batch. low_noise: fraction of stratified timesteps kept to
    the beginning of the schedule, where detail is learnt."""

    null_text: float = 0.1
    subject: float = 1.0
    stratified: bool = False
    low_noise: float = 0.0


class VaeStage(Stage):
    """Images to latents and back: AutoencoderKL, with latents of unit variance on export."""

    needs = frozenset({"targets"})
    Options = VaeOptions
    options: VaeOptions
    trains = ("vae.",)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.vae = AutoencoderKL.from_config(self.setup.part("vae"))
        self.vae.to(memory_format=torch.channels_last)

    def collator(self, pool: Pool | None) -> Collator:
        return Collator(self.needs, self.setup.image_size, 0)

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        assert batch.targets is not None
        pixels = random_crops(batch.targets, self.options.crop, random)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(pixels).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        eps = random.normal(*mean.shape[1:]).to(mean)
        rebuilt = self.vae.decode((mean + torch.exp(0.5 * logvar) * eps).to(posterior.mean.dtype)).sample.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        return {
            "pixels": F.l1_loss(rebuilt, pixels) + 2.0 * F.mse_loss(rebuilt, pixels),
            "edges": self.options.edges * edge_error(rebuilt, pixels),
            "kl": self.options.kl * kl,
        }

    def preview(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return show_reconstructions(self.vae, batch)

    def export(self, folder: Path) -> None:
        self.vae.register_to_config(scaling_factor=1.0)
        self.vae.save_pretrained(folder / "vae")

    @torch.no_grad()
    def calibrate(self, sample: Callable[[int], Sample]) -> None:
        """Fold each latent channel's mean and deviation into the quantisation convolutions."""
        collate, latents = self.collator(None), []
        for first in range(0, 512, 64):
            indices = list(range(first, first + 64))
            targets = collate([sample(index) for index in indices], indices).targets
            assert targets is not None
            latents.append(self.vae.encode(targets.to(self.vae.device)).latent_dist.mean)
        mean, std = torch.cat(latents).mean((0, 2, 3)), torch.cat(latents).std((0, 2, 3))
        into, out = self.vae.quant_conv, self.vae.post_quant_conv
        half = len(mean)
        into.bias[:half] = (into.bias[:half] - mean) / std
        into.weight[:half] /= std[:, None, None, None]
        into.bias[half:] -= 2 * std.log()  # the second half of the channels is the log variance
        out.bias += (out.weight[..., 0, 0] * mean).sum(1)
        out.weight *= std[None, :, None, None]


class ClipStage(Stage):
    """Images and captions to one space: transformers' CLIPModel, and two tokenizers trained on the data's captions.

    With `init_from.clip`, the result of an earlier run, it continues from that; with `init_from.text`, a folder with
    tokenizer and text encoder such as a diffusers one, its text tower starts from those. With locked_text a U-Net
    trained with that text encoder still fits. Source: locked-image tuning (arXiv:2111.07991), the other way round.
    """

    needs = frozenset({"images", "clip_tokens"})
    Options = ClipOptions
    options: ClipOptions
    use = "match"
    compiles = ("clip",)
    contrasts = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.tokenizer = self._tokenizer()
        text = CLIPTextConfig(
            **self.setup.part("clip_text"),
            vocab_size=len(self.tokenizer),
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        vision = CLIPVisionConfig(**self.setup.part("clip_vision"))
        self.clip = CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=self.options.projection)
        )
        if "clip" in setup.init_from:
            start = load_file(self.setup.source("clip") / "clip" / "model.safetensors")
            assign_weights(self.clip, start, source=str(self.setup.source("clip")))
        elif "text" in setup.init_from:
            folder = self.setup.source("text")
            assign_weights(
                self.clip.text_model,
                CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict(),
                source=str(folder),
            )
        locked = ("vision_model", "visual_projection", "text_projection", "logit_scale")
        self.trains = tuple(f"clip.{name}" for name in locked) if self.options.locked_text else ("clip.",)

    def collator(self, pool: Pool | None) -> Collator:
        vision_size = int(self.setup.part("clip_vision")["image_size"])
        return Collator(self.needs, self.setup.image_size, vision_size, clip_tokenizer=self.tokenizer)

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"clip": [self.clip]}

    def forward(self, batch: Batch, random: StepRandom, whole: Whole = alone) -> dict[str, Tensor]:
        assert batch.images is not None and batch.clip_tokens is not None
        out = self.clip(input_ids=batch.clip_tokens, pixel_values=batch.images)
        images, texts, tokens = whole(out.image_embeds, out.text_embeds, batch.clip_tokens)
        # Identical captions are not each other's negatives.
        same = (tokens[:, None] == tokens[None]).all(-1).float()
        wanted = same / same.sum(1, keepdim=True)
        logits = (texts @ images.T * self.clip.logit_scale.exp()).T.float()
        return {"contrast": 0.5 * (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted))}

    def _captions(self) -> list[str]:
        return self.setup.texts(self.options.captions, self.setup.seed)

    def _tokenizer(self) -> CLIPTokenizer:
        for part in ("clip", "text"):
            if part in self.setup.init_from:
                return CLIPTokenizer.from_pretrained(self.setup.source(part) / "tokenizer")
        length = int(self.setup.part("clip_text")["max_position_embeddings"])
        return clip_tokenizer(self._captions(), self.options.clip_vocab, length)

    def export(self, folder: Path) -> None:
        self.clip.save_pretrained(folder / "clip")
        text = CLIPTextModel(self.clip.config.text_config)
        text.load_state_dict(self.clip.text_model.state_dict())
        text.save_pretrained(folder / "text_encoder")
        if "clip" in self.setup.init_from:
            for part in ("tokenizer", "sentencepiece"):
                copy_folder(self.setup.source("clip") / part, folder / part)
            return
        if "text" in self.setup.init_from:
            copy_folder(self.setup.source("text") / "tokenizer", folder / "tokenizer")
        else:
            # The tokenizer saves the padding of its last call, which differs between processes.
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
            self.tokenizer.save_pretrained(folder / "tokenizer")
        train_sentencepiece(self._captions(), self.options.sentencepiece_vocab, folder / "sentencepiece")


class CaptionedStage(Stage):
    """The base of a U-Net and its adapters: captions encoded by a CLIP text encoder, and the noise-prediction error."""

    needs = frozenset({"clip_tokens", "moments"})
    Options = CaptionedOptions
    options: CaptionedOptions
    uses_pool = True
    compiles: ClassVar[tuple[str, ...]] = ("unet",)
    diffusion: Diffusion
    null_tokens: Tensor  # (1, L) the empty caption

    def load_text(self, folder: Path) -> None:
        """Load the tokenizer and text encoder of a folder."""
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder")
        self.register_buffer("null_tokens", self._tokenize([""]), persistent=False)

    def steer(self, batch: Batch) -> Steer | None:
        """Return the additional inputs of the U-Net, as a ControlNet's residuals; None: none."""
        return None

    def collator(self, pool: Pool | None) -> Collator:
        return Collator(self.needs, self.setup.image_size, 0, clip_tokenizer=self.tokenizer, pool=pool)

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"unet": [self.diffusion.unet]}

    def idle_parts(self) -> list[nn.Module]:
        return [self.diffusion.vae]

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        assert batch.clip_tokens is not None and batch.moments is not None and batch.subject is not None
        drop = random.uniform().to(batch.clip_tokens.device)
        dropped = (drop < self.options.null_text)[:, None]
        conditioning = self._encode(torch.where(dropped, self.null_tokens, batch.clip_tokens))
        mean, logvar = batch.moments.chunk(2, dim=1)
        latents = self.diffusion.sample_latents(mean, logvar, random=random)
        weight = 1.0 + self.options.subject * batch.subject
        loss = self.diffusion.noise_loss(
            latents,
            conditioning,
            random=random,
            timesteps_B=self._timesteps(random),
            weight_BHW=weight,
            steer=self.steer(batch),
        )
        return {"diffusion": loss}

    def _timesteps(self, random: StepRandom) -> Tensor | None:
        """Return stratified timesteps if the recipe sets them; None: the diffusion's own sampling."""
        if not self.options.stratified:
            return None
        num_steps = self.diffusion.noise_scheduler.config.num_train_timesteps
        return stratified_timesteps(random, num_steps, self.options.low_noise).to(self.null_tokens.device)

    @torch.no_grad()
    def preview(self, batch: Batch, generator: torch.Generator) -> Tensor:
        assert batch.clip_tokens is not None
        return preview_images(
            self.diffusion,
            self._encode(batch.clip_tokens[:NUM_PREVIEW]),
            self._encode(self.null_tokens),
            generator,
            side=self.setup.image_size,
            guidance_scale=3.0,
            steer=self.steer(batch),
        )

    @torch.no_grad()
    def _encode(self, tokens: Tensor) -> Tensor:
        return self.text(tokens).last_hidden_state

    def _tokenize(self, captions: list[str]) -> Tensor:
        out = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return out.input_ids


class UnetStage(CaptionedStage):
    """Text to latents: a U-Net that attends to the CLIP text encoder, as in Stable Diffusion.

    With `init_from.unet`, a diffusers folder, it continues from that folder's weights.
    """

    trains = ("diffusion.unet.",)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.load_text(self.setup.source("clip"))
        unet = UNet2DConditionModel.from_config(self.setup.part("unet"))
        if "unet" in setup.init_from:
            start = load_decoder(self.setup.source("unet"), local_files_only=True).unet
            assign_weights(unet, start.state_dict(), source=str(self.setup.source("unet")))
        vae = AutoencoderKL.from_pretrained(self.setup.source("vae") / "vae")
        self.diffusion = Diffusion(unet, vae, self.setup.part("scheduler"))
        self.diffusion.to(memory_format=torch.channels_last)

    def export(self, folder: Path) -> None:
        self.diffusion.unet.save_pretrained(folder / "unet")
        DDIMScheduler.from_config(self.diffusion.scheduler_config).save_pretrained(folder / "scheduler")
        copy_folder(self.setup.source("vae") / "vae", folder / "vae")
        for part in ("text_encoder", "tokenizer"):
            copy_folder(self.setup.source("clip") / part, folder / part)
        (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", "utf-8")


def clip_tokenizer(captions: list[str], vocab_size: int, length: int) -> CLIPTokenizer:
    """Return a CLIP tokenizer trained on captions; it pads to `length` tokens."""
    letters = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]  # the byte alphabet of GPT-2's tokenizer
    symbols = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    plain = CLIPTokenizer(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[])
    # The trainer numbers symbols randomly and breaks ties by number, unless they are given as special tokens; taking
    # its merges alone gives the same tokenizer in every process and after every resume.
    trained = plain.train_new_from_iterator(captions, vocab_size=vocab_size, new_special_tokens=symbols)
    merges = [tuple(merge) for merge in json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]]
    pieces = symbols + [left + right for left, right in merges]
    tokenizer = CLIPTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges)
    tokenizer.model_max_length = length
    return tokenizer


def random_crops(images: Tensor, side: int, random: StepRandom) -> Tensor:
    """Return a random square of each image, `side` pixels wide; 0 returns them whole.

    Shapes:
        images: (B, C, S, S) -> (B, C, side, side)
    """
    room = images.shape[-1] - side
    if side == 0 or room <= 0:
        return images
    starts = (random.uniform(2) * (room + 1)).long().tolist()
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(images, starts, strict=True)])


def edge_error(rebuilt: Tensor, pixels: Tensor) -> Tensor:
    """Return the mean error of differences between neighbouring pixels."""
    error = rebuilt - pixels
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


@torch.no_grad()
def show_reconstructions(vae: AutoencoderKL, batch: Batch) -> Tensor:
    """Return the first images of a batch and their reconstructions below, (N, 3, X, Y) in [0, 1]."""
    assert batch.targets is not None
    pixels = batch.targets[:16]
    rebuilt = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    return torch.cat([pixels, rebuilt]).clamp(-1, 1) / 2 + 0.5
