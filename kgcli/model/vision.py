"""The CLIP vision tower: images in, one unit vector per patch out.

Shape letters: N images, S side in pixels, P tokens (class token and patches), V vision width.

Source: CLIP (arXiv:2103.00020), ViT without its projection head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from kgcli.config import VisionConfig
from kgcli.model.layers import Attention, layer_norm

UNIT_EPS = 1e-12  # floor of the norm that token vectors are divided by


class VisionTower(nn.Module):
    """Encode images to tokens of unit length; the class token comes first.

    Shapes:
        pixels_N3SS, normalised with CLIP's mean and deviation -> (N, P, V), P = 1 + (S / patch size)^2
    """

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        num_tokens = 1 + (cfg.image_size // cfg.patch_size) ** 2
        scale = cfg.width**-0.5  # as CLIP initialises these two
        self.patch_embed = nn.Conv2d(3, cfg.width, cfg.patch_size, stride=cfg.patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(cfg.width))
        self.positions = nn.Parameter(scale * torch.randn(num_tokens, cfg.width))
        self.pre_norm = layer_norm(cfg.width)
        self.blocks = nn.ModuleList(VisionBlock(cfg) for _ in range(cfg.num_layers))
        self.final_norm = layer_norm(cfg.width)

    def forward(self, pixels_N3SS: Tensor) -> Tensor:
        # CLIP normalises the class token alone; KOSMOS-G uses every token, so every token is normalised.
        return F.normalize(self.tokens(pixels_N3SS), dim=-1, eps=UNIT_EPS)

    def tokens(self, pixels_N3SS: Tensor) -> Tensor:
        """Return the tokens before they are normalised to unit length."""
        patches_NPV = rearrange(self.patch_embed(pixels_N3SS), "n v h w -> n (h w) v")
        class_N1V = self.class_embedding.expand(len(patches_NPV), 1, -1)
        x_NPV = self.pre_norm(torch.cat([class_N1V, patches_NPV], dim=1) + self.positions)
        for block in self.blocks:
            x_NPV = block(x_NPV)
        return self.final_norm(x_NPV)


class VisionBlock(nn.Module):
    """A plain pre-norm layer, as in CLIP."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = layer_norm(cfg.width)
        self.attention = Attention(cfg.width, cfg.num_heads)
        self.mlp_norm = layer_norm(cfg.width)
        self.mlp = MLP(cfg)

    def forward(self, x_NPV: Tensor) -> Tensor:
        normed_NPV = self.attention_norm(x_NPV)
        x_NPV = x_NPV + self.attention(normed_NPV, normed_NPV)
        return x_NPV + self.mlp(self.mlp_norm(x_NPV))


class MLP(nn.Module):
    """Two linear maps with the activation that the weights were trained with."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        hidden_width = int(cfg.width * cfg.mlp_ratio)
        self.fc1 = nn.Linear(cfg.width, hidden_width)
        self.activation = ACTIVATIONS[cfg.activation]
        self.fc2 = nn.Linear(hidden_width, cfg.width)

    def forward(self, x_NPV: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x_NPV)))


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}
