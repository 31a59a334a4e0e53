"""BLIP-Diffusion: a subject's picture as tokens in the prompt, by diffusers' own pipeline.

Source: BLIP-Diffusion (arXiv:2305.14720).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image
from transformers.models.clip.modeling_clip import CLIPEncoder

from kgcli.data.images import open_image
from kgcli.errors import IncompatibleError, MissingError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.decoder import fetch, read_dtype
from kgcli.evaluation.baselines.settings import check_range, read_settings
from kgcli.evaluation.baselines.words import split_subject
from kgcli.evaluation.run.folder import Item
from kgcli.inference.denoise import seeded
from kgcli.runtime import choose_device, memory_errors
from kgcli.weights.folder import check_diffusers_part, hash_files
from kgcli.weights.hub import is_hub_id

REPOSITORY = "Salesforce/blipdiffusion"
PARTS = ("qformer", "text_encoder", "unet", "vae")


class BlipDiffusion:
    """Zero-shot: reads one picture, what it shows and where. Settings: prompt_strength, prompt_reps."""

    name = "blip-diffusion"
    # As the authors' program repeats its prompt.
    defaults = {"prompt_strength": 1.0, "prompt_reps": 20}

    def __init__(self, options: MethodOptions) -> None:
        check_versions()
        read_dtype(options.dtype)
        self.options = options
        self.settings = read_settings(self.name, self.defaults, options.extra)
        check_range(self.name, self.settings, {"prompt_strength": 0.0, "prompt_reps": 1})
        if options.decoder is not None or options.sampling.scheduler is not None:
            raise IncompatibleError(f"--method {self.name} has its own decoder and scheduler; --model names them all")
        self.path = _find(options.model or REPOSITORY, options.offline)
        for part in PARTS:
            check_diffusers_part(self.path, part)

    def facts(self) -> dict[str, Any]:
        """Name, settings, how it draws, and the hash of its weights."""
        return {
            "name": self.name,
            "sha256": hash_files([file for part in PARTS for file in sorted((self.path / part).glob("*.safetensors"))]),
            "dtype": self.options.dtype,
            "negative_prompt": self.options.negative_prompt,
            **self._drawing(),
            "settings": dict(sorted(self.settings.items())),
        }

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """Nothing is learnt."""

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """A picture for each item, one by one: the pipeline takes one reference."""
        pictures: list[Image.Image] = []
        with memory_errors():
            for item in items:
                if len(item.inputs) != 1:
                    raise IncompatibleError(f"{item.path}: its prompt has {len(item.inputs)} pictures; it takes one")
                shown, rest = split_subject(item)
                result = self._pipeline(
                    [rest],
                    open_image(data / item.inputs[0], srgb=False),
                    [item.class_noun or shown],
                    [shown],
                    neg_prompt=self.options.negative_prompt,
                    generator=seeded([item.seed]),
                    **self._drawing(),
                    **self.settings,
                )
                pictures += result.images
        return pictures

    def _drawing(self) -> dict[str, Any]:
        """Where nothing is said, as the protocol of DreamBench."""
        options = self.options
        size = options.sampling.width or 512
        return {
            "num_inference_steps": options.sampling.num_inference_steps or 100,
            "guidance_scale": 7.5 if options.sampling.guidance_scale is None else options.sampling.guidance_scale,
            "height": size,
            "width": size,
        }

    @cached_property
    def _pipeline(self) -> Any:
        dtype = torch.bfloat16 if self.options.dtype == "bfloat16" else torch.float32
        pipeline = diffusers.pipelines.BlipDiffusionPipeline.from_pretrained(
            self.path, torch_dtype=dtype, local_files_only=True
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(choose_device(self.options.device))


def check_versions() -> None:
    """See that diffusers' BLIP-Diffusion computes what it was published to compute.

    Its classes call transformers as version 4 was: in version 5 their causal mask is taken and ignored, and the
    Q-Former fails.

    Raises: IncompatibleError.
    """
    if "causal_attention_mask" not in inspect.signature(CLIPEncoder.forward).parameters:
        raise IncompatibleError(
            f"BLIP-Diffusion's classes in diffusers {diffusers.__version__} do not work with transformers "
            f"{transformers.__version__} (they ask for functions of transformers 4); draw its pictures in another "
            "environment and score them with --images"
        )


def _find(location: str, offline: bool) -> Path:
    """The pipeline's folder. Raises: MissingError."""
    path = Path(location).expanduser()
    if path.is_dir():
        return path
    if not is_hub_id(location):
        raise MissingError(f"there is no BLIP-Diffusion folder {location}")
    return fetch(location, None, offline)
