"""The stages that make the nano base: a VAE, a CLIP pair and a text-conditional U-Net, as Stable Diffusion is made.

Each exports folders that diffusers and transformers load by themselves.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from kgcli.config import Recipe
from kgcli.data.batch import Batch, Collator, Pool
from kgcli.data.sources.world import draw
from kgcli.data.tokenizer import train_sentencepiece
from kgcli.model.diffusion import Diffusion, Steer
from kgcli.model.randomness import StepRandom
from kgcli.training.preview import preview_pictures
from kgcli.training.stages.kosmosg import Stage, copy_folder
from kgcli.weights.decoder import load_decoder
from kgcli.weights.safetensors import assign_weights

NUM_PREVIEW = 32  # pictures of a sample grid
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


class VaeStage(Stage):
    """Pictures to latents and back: AutoencoderKL, with latents of unit variance on export.

    Options: kl (weight of the mean KL divergence per latent number), edges (weight of the error of differences
    between neighbouring pixels, which keeps outlines sharp).
    """

    needs = frozenset({"targets"})
    options = frozenset({"kl", "edges"})
    trains = ("vae.",)

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.vae = AutoencoderKL.from_config(self.part("vae"))
        self.vae.to(memory_format=torch.channels_last)

    def collator(self, pool: Pool | None) -> Collator:
        return Collator(self.needs, self.recipe.image_size, 0)

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        assert batch.targets is not None
        pixels = batch.targets.contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(pixels).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        eps = random.normal(*mean.shape[1:]).to(mean)
        rebuilt = self.vae.decode((mean + torch.exp(0.5 * logvar) * eps).to(posterior.mean.dtype)).sample.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        return {
            "pixels": F.l1_loss(rebuilt, pixels) + 2.0 * F.mse_loss(rebuilt, pixels),
            "edges": self.option("edges", 0.5) * _edge_error(rebuilt, pixels),
            "kl": self.option("kl", 1e-4) * kl,
        }

    @torch.no_grad()
    def preview(self, batch: Batch, generator: torch.Generator) -> Tensor:
        assert batch.targets is not None
        pixels = batch.targets[:16]
        rebuilt = self.vae.decode(self.vae.encode(pixels).latent_dist.mean).sample
        return torch.cat([pixels, rebuilt]).clamp(-1, 1) / 2 + 0.5

    def export(self, folder: Path) -> None:
        self._whiten()
        self.vae.register_to_config(scaling_factor=1.0)
        self.vae.save_pretrained(folder / "vae")

    @torch.no_grad()
    def _whiten(self) -> None:
        """Fold each latent channel's mean and deviation into the quantisation convolutions, once."""
        collate, latents = self.collator(None), []
        for first in range(0, 512, 64):
            indices = list(range(first, first + 64))
            samples = [draw(self.recipe.data.kinds, 1 << 20, i, self.recipe.image_size) for i in indices]
            targets = collate(samples, indices).targets
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
    """Pictures and captions to one space: transformers' CLIPModel, and the two tokenizers of the world's words.

    With `init_from.clip`, the result of an earlier run, it goes on from that; with the option locked_text (1) the text
    encoder then stays as it is, so that a U-Net made for it still fits. Source: locked-image tuning (arXiv:2111.07991),
    the other way round.

    Options: locked_text, projection (width of the shared space), clip_vocab and sentencepiece_vocab (pieces of the two
    tokenizers), captions (sentences they are made from).
    """

    needs = frozenset({"images", "clip_tokens"})
    options = frozenset({"projection", "clip_vocab", "sentencepiece_vocab", "captions", "locked_text"})

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.tokenizer = self._tokenizer()
        text = CLIPTextConfig(
            **self.part("clip_text"),
            vocab_size=len(self.tokenizer),
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        vision = CLIPVisionConfig(**self.part("clip_vision"))
        self.clip = CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=int(self.option("projection", 128)))
        )
        if "clip" in recipe.init_from:
            start = load_file(self.source("clip") / "clip" / "model.safetensors")
            assign_weights(self.clip, start, source=str(self.source("clip")))
        locked = ("vision_model", "visual_projection", "text_projection", "logit_scale")
        self.trains = tuple(f"clip.{name}" for name in locked) if self.option("locked_text", 0) else ("clip.",)

    def collator(self, pool: Pool | None) -> Collator:
        vision_size = int(self.part("clip_vision")["image_size"])
        return Collator(self.needs, self.recipe.image_size, vision_size, clip_tokenizer=self.tokenizer)

    def heavy_parts(self) -> list[nn.Module]:
        return [self.clip]

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        assert batch.images is not None and batch.clip_tokens is not None
        out = self.clip(input_ids=batch.clip_tokens, pixel_values=batch.images)
        # Captions that read the same are not each other's negatives.
        same = (batch.clip_tokens[:, None] == batch.clip_tokens[None]).all(-1).float()
        wanted = same / same.sum(1, keepdim=True)
        logits = out.logits_per_image.float()
        return {"contrast": 0.5 * (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted))}

    def _captions(self) -> list[str]:
        return world_captions(self.recipe, int(self.option("captions", 20000)))

    def _tokenizer(self) -> CLIPTokenizer:
        if "clip" in self.recipe.init_from:
            return CLIPTokenizer.from_pretrained(self.source("clip") / "tokenizer")
        length = int(self.part("clip_text")["max_position_embeddings"])
        return clip_tokenizer(self._captions(), int(self.option("clip_vocab", 1024)), length)

    def export(self, folder: Path) -> None:
        self.clip.save_pretrained(folder / "clip")
        text = CLIPTextModel(self.clip.config.text_config)
        text.load_state_dict(self.clip.text_model.state_dict())
        text.save_pretrained(folder / "text_encoder")
        if "clip" in self.recipe.init_from:
            for part in ("tokenizer", "sentencepiece"):
                copy_folder(self.source("clip") / part, folder / part)
            return
        self.tokenizer.save_pretrained(folder / "tokenizer")
        vocab_size = int(self.option("sentencepiece_vocab", 800))
        train_sentencepiece(self._captions(), vocab_size, folder / "sentencepiece")


class CaptionedStage(Stage):
    """What a U-Net and its adapters share: captions read by a CLIP text encoder, and the error of the noise predicted.

    Options: null_text (probability of the empty caption), subject (extra weight of the error inside subjects).
    """

    needs = frozenset({"clip_tokens", "moments"})
    options = frozenset({"null_text", "subject"})
    uses_pool = True
    diffusion: Diffusion
    null_tokens: Tensor  # (1, L) the empty caption

    def load_text(self, folder: Path) -> None:
        """Take up the tokenizer and text encoder of a folder."""
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder")
        self.register_buffer("null_tokens", self._tokenize([""]), persistent=False)

    def steer(self, batch: Batch) -> Steer | None:
        """What is said to the U-Net beside its conditioning."""
        return None

    def collator(self, pool: Pool | None) -> Collator:
        return Collator(self.needs, self.recipe.image_size, 0, clip_tokenizer=self.tokenizer, pool=pool)

    def heavy_parts(self) -> list[nn.Module]:
        return [self.diffusion.unet]

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        assert batch.clip_tokens is not None and batch.moments is not None and batch.subject is not None
        drop = random.uniform().to(batch.clip_tokens.device)
        dropped = (drop < self.option("null_text", 0.1))[:, None]
        conditioning = self._encode(torch.where(dropped, self.null_tokens, batch.clip_tokens))
        mean, logvar = batch.moments.chunk(2, dim=1)
        latents = self.diffusion.sample_latents(mean, logvar, random=random)
        weight = 1.0 + self.option("subject", 1.0) * batch.subject
        loss = self.diffusion.noise_loss(
            latents, conditioning, random=random, weight_BHW=weight, steer=self.steer(batch)
        )
        return {"diffusion": loss}

    @torch.no_grad()
    def preview(self, batch: Batch, generator: torch.Generator) -> Tensor:
        assert batch.clip_tokens is not None
        return preview_pictures(
            self.diffusion,
            self._encode(batch.clip_tokens[:NUM_PREVIEW]),
            self._encode(self.null_tokens),
            generator,
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

    With `init_from.unet`, a diffusers folder, it goes on from that folder's weights.
    """

    trains = ("diffusion.unet.",)

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.load_text(self.source("clip"))
        unet = UNet2DConditionModel.from_config(self.part("unet"))
        if "unet" in recipe.init_from:
            start = load_decoder(self.source("unet"), local_files_only=True).unet
            assign_weights(unet, start.state_dict(), source=str(self.source("unet")))
        vae = AutoencoderKL.from_pretrained(self.source("vae") / "vae")
        self.diffusion = Diffusion(unet, vae, self.part("scheduler"))
        self.diffusion.to(memory_format=torch.channels_last)

    def export(self, folder: Path) -> None:
        self.diffusion.unet.save_pretrained(folder / "unet")
        DDIMScheduler.from_config(self.diffusion.scheduler_config).save_pretrained(folder / "scheduler")
        copy_folder(self.source("vae") / "vae", folder / "vae")
        for part in ("text_encoder", "tokenizer"):
            copy_folder(self.source("clip") / part, folder / part)
        (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", "utf-8")


def world_captions(recipe: Recipe, num: int) -> list[str]:
    """Sentences that hold every word of the world, for the tokenizers to be made from."""
    kinds = {"captioned": 1.0}
    captions = [draw(kinds, recipe.seed, index, recipe.image_size).caption for index in range(num)]
    rng = np.random.default_rng(recipe.seed)
    more = [
        draw({"edit": 0.5, "compositional": 0.5}, recipe.seed, int(i), recipe.image_size)
        for i in rng.integers(1 << 30, size=num // 10)
    ]
    return captions + [piece for sample in more for piece in sample.fragments if piece]


def clip_tokenizer(captions: list[str], vocab_size: int, length: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges come from captions; `length` in tokens is what it pads to."""
    letters = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]  # the byte alphabet of GPT-2's tokenizer
    symbols = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    plain = CLIPTokenizer(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[])
    # The trainer numbers symbols by chance and breaks ties by number, unless they are given as special tokens; taking
    # its merges alone gives the same tokenizer in every process and after every resume.
    trained = plain.train_new_from_iterator(captions, vocab_size=vocab_size, new_special_tokens=symbols)
    merges = [tuple(merge) for merge in json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]]
    pieces = symbols + [left + right for left, right in merges]
    tokenizer = CLIPTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges)
    tokenizer.model_max_length = length
    return tokenizer


def _edge_error(rebuilt: Tensor, pixels: Tensor) -> Tensor:
    error = rebuilt - pixels
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
