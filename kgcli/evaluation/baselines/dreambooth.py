"""DreamBooth: the U-Net learns that a rare word before the class noun means this one subject.

Pictures of the class, drawn by the decoder itself before it learns, keep the class from becoming the subject.

Source: DreamBooth (arXiv:2208.12242); low-rank weights as in LoRA (arXiv:2106.09685).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.decoder import TextDecoder
from kgcli.evaluation.baselines.per_subject import PerSubject
from kgcli.evaluation.baselines.settings import check_range
from kgcli.evaluation.baselines.words import name_subject
from kgcli.evaluation.plan import Item
from kgcli.files import write_whole
from kgcli.model.randomness import StepRandom

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"  # the name that `load_lora_weights` looks for
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TARGETS = ("to_k", "to_q", "to_v", "to_out.0")  # of all attention, as in diffusers' own training program
ADAPTER = "default"


class DreamBooth(PerSubject):
    """Learns a subject in the U-Net. Settings: steps, batch, lr, references, identifier, class_pictures, prior_weight,
    rank, full, seed, save_every.
    """

    name = "dreambooth"
    # sd: steps, batch, weight of the prior and (with full=true) the rate of the paper for Stable Diffusion; the rate of
    # LoRA is that of diffusers' training program. class_pictures=0 learns without a prior.
    defaults = {
        "sd": {
            "steps": 1000, "batch": 1, "lr": 1e-4, "references": "input", "identifier": "sks", "class_pictures": 200,
            "prior_weight": 1.0, "rank": 16, "full": False, "seed": 0, "save_every": 250,
        },
        "small": {
            "steps": 80, "batch": 2, "lr": 2e-3, "references": "input", "identifier": "sks", "class_pictures": 8,
            "prior_weight": 1.0, "rank": 16, "full": False, "seed": 0, "save_every": 50,
        },
    }  # fmt: skip
    full_rates = {"sd": 5e-6, "small": 1e-4}

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        check_range(self.name, self.settings, {"rank": 1, "class_pictures": 0, "prior_weight": 0.0})

    def defaults_for(self, given: Mapping[str, str]) -> Mapping[str, Any]:
        """Where all of the U-Net trains, the rate is another."""
        found = dict(super().defaults_for(given))
        if given.get("full", "").strip().lower() in ("true", "1"):
            found["lr"] = self.full_rates[self.folder.scale]
        return found

    def attach(self, decoder: TextDecoder) -> None:
        """Put low-rank weights into the U-Net's attention; they add nothing until they have learnt."""
        if self.settings["full"]:
            return
        rank = self.settings["rank"]
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(TARGETS))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings["seed"])
            decoder.diffusion.unet.add_adapter(config, ADAPTER)
        decoder.diffusion.requires_grad_(False)

    def trained(self) -> dict[str, nn.Parameter]:
        """The low-rank weights, or with `full` all of the U-Net."""
        named = self.decoder.diffusion.unet.named_parameters()
        return {name: p for name, p in named if self.settings["full"] or ".lora_" in name}

    def begin(self, noun: str, pictures: list[Path], shared: Path) -> Callable[[StepRandom], Tensor]:
        """Draw the class, and read both captions once: the text encoder does not train."""
        decoder, settings = self.decoder, self.settings
        own = decoder.moments(pictures)
        prior = None
        with torch.no_grad():
            told = decoder.encode([f"a {settings['identifier']} {noun}"])
            told_class = decoder.encode([f"a {noun}"])
        if settings["class_pictures"]:
            prior = decoder.moments(self._draw_class(noun, shared))
        return partial(self._loss, own, prior, told, told_class)

    def _loss(
        self,
        own: tuple[Tensor, Tensor],
        prior: tuple[Tensor, Tensor] | None,
        told: Tensor,
        told_class: Tensor,
        random: StepRandom,
    ) -> Tensor:
        num = self.settings["batch"]
        loss = self.decoder.loss(own, told.expand(num, -1, -1), random)
        if prior is not None:
            other = self.decoder.loss(prior, told_class.expand(num, -1, -1), random)
            loss = loss + self.settings["prior_weight"] * other
        return loss

    def _draw_class(self, noun: str, shared: Path) -> list[Path]:
        """Pictures of the class, kept for all subjects of it; whoever draws them draws the same."""
        made_of = f"{noun}/{self.decoder.sampling}/{self.folder.sha256}"
        slug = hashlib.sha256(made_of.encode()).hexdigest()[:12]
        folder = shared / f".class-{slug}"
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{index:04d}.png" for index in range(self.settings["class_pictures"])]
        for start in range(0, len(paths), 4):
            batch = paths[start : start + 4]
            if all(path.is_file() for path in batch):
                continue
            seeds = [int(hashlib.sha256(f"{noun}/{path.name}".encode()).hexdigest()[:8], 16) for path in batch]
            for path, picture in zip(batch, self.decoder.draw([f"a {noun}"] * len(batch), seeds), strict=True):
                content = io.BytesIO()
                picture.save(content, "PNG")
                write_whole(path, content.getvalue())
        return paths

    def write(self, folder: Path, subject: str) -> None:
        """A diffusers LoRA file, or with `full` the U-Net's folder."""
        unet = self.decoder.diffusion.unet
        if self.settings["full"]:
            unet.save_pretrained(folder / "unet", safe_serialization=True)
            return
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))

    def read(self, folder: Path) -> dict[str, Tensor]:
        """What `write` kept."""
        if self.settings["full"]:
            return load_file(folder / UNET_WEIGHTS)
        kept = load_file(folder / LORA_WEIGHTS)
        return {name: kept["unet." + name.replace(f".{ADAPTER}.", ".")] for name in self.trained()}

    def words(self, item: Item) -> str:
        """The scored text with the rare word before its class noun."""
        return name_subject(item, f"{self.settings['identifier']} {item.class_noun or item.subject}")
