"""Two feature extractors for nano images: a CLIP and a self-supervised ViT, trained only for evaluation.

They are trained on instances and seeds that no generator is trained on, and share no weight, seed or architecture
with a generator: the CLIP's image tower is a convolutional net, the ViT's patches are twice as large.

Shape letters: B images, N texts, L tokens, C channels, X Y places, S pixels, E embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from kgcli.errors import MissingError
from kgcli.model.nano_recognisers import Trunk
from kgcli.world.tables import SIZE
from kgcli.world.view import WORLD, check_world, how_to_train

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"


class EvalClip(nn.Module):
    """A CLIP: images and captions in one embedding space. Source: CLIP (arXiv:2103.00020).

    Shapes:
        pixels_B3SS: in [-1, 1] -> (B, E); tokens_NL -> (N, E); both of length 1
    """

    def __init__(self, channels: Sequence[int], width: int, text: dict[str, Any], tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.config = {"channels": list(channels), "width": width, "text": dict(text)}
        self.tokenizer = tokenizer
        self.trunk = Trunk(channels)
        self.picture_projection = nn.Linear(2 * channels[-1] + 2 * channels[0], width)
        self.text = CLIPTextModel(
            CLIPTextConfig(
                **text,
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        self.text_projection = nn.Linear(int(text["hidden_size"]), width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.3))  # of the similarities, starts at 10

    def embed_images(self, pixels_B3SS: Tensor) -> Tensor:
        """Embed images: (B, E), rows of length 1."""
        features_BCXY, stem_BCXY = self.trunk(pixels_B3SS)
        pooled_BC = torch.cat([_mean_and_max(features_BCXY), _mean_and_max(stem_BCXY)], dim=1)
        return F.normalize(self.picture_projection(pooled_BC).float(), dim=-1)

    def embed_tokens(self, tokens_NL: Tensor) -> Tensor:
        """Embed captions: (N, E), rows of length 1."""
        pooled = self.text(input_ids=tokens_NL).pooler_output
        return F.normalize(self.text_projection(pooled).float(), dim=-1)

    def save(self, folder: Path, image_size: int = SIZE) -> None:
        """Write sizes, weights and tokenizer into a folder; `image_size` is that of the images it learnt from."""
        _save(self, {**self.config, WORLD: image_size}, folder)
        self.tokenizer.save_pretrained(folder / TOKENIZER)

    @classmethod
    def load(cls, folder: Path) -> EvalClip:
        """Load the network of a folder, in fp32 on the CPU. Raises: MissingError, IncompatibleError."""
        config, weights = _load(folder, "eval_clip")
        model = cls(**config, tokenizer=CLIPTokenizer.from_pretrained(folder / TOKENIZER))
        model.load_state_dict(weights)
        return model.eval().to(memory_format=torch.channels_last)


class EvalVit(nn.Module):
    """A self-supervised ViT whose features are close for images of one subject.

    Shapes:
        pixels_B3SS: in [-1, 1] -> (B, E) of length 1
    """

    def __init__(self, vit: dict[str, Any], width: int) -> None:
        super().__init__()
        self.config = {"vit": dict(vit), "width": width}
        self.vit = VisionTransformer(**vit, num_classes=0)
        self.projection = nn.Linear(self.vit.num_features, width)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        return F.normalize(self.projection(self.vit(pixels_B3SS)).float(), dim=-1)

    def save(self, folder: Path, image_size: int = SIZE) -> None:
        """Write sizes and weights into a folder; `image_size` is that of the images it learnt from."""
        _save(self, {**self.config, WORLD: image_size}, folder)

    @classmethod
    def load(cls, folder: Path) -> EvalVit:
        """Load the network of a folder, in fp32 on the CPU. Raises: MissingError, IncompatibleError."""
        config, weights = _load(folder, "eval_dino")
        model = cls(**config)
        model.load_state_dict(weights)
        return model.eval()


def _mean_and_max(features_BCXY: Tensor) -> Tensor:
    return torch.cat([features_BCXY.mean((-2, -1)), features_BCXY.amax((-2, -1))], dim=1)


def _save(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)


def _load(folder: Path, stage: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise MissingError(f"there is no {stage} in {folder}; train it with {how_to_train(stage)}")
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    check_world(config, folder, stage)
    weights = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
    return {name: value for name, value in config.items() if name != WORLD}, weights
