"""The smallest models that have every part of the real ones."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from kgcli.config import AlignerConfig, MLLMConfig, ModelConfig, ResamplerConfig, SpecialIds, VisionConfig
from kgcli.model.diffusion import Diffusion
from kgcli.model.kosmosg import KosmosG

CONFIG = ModelConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=16, num_heads=2, num_layers=2),
    resampler=ResamplerConfig(num_queries=3, num_heads=2),
    mllm=MLLMConfig(vocab_size=50, width=24, num_layers=2, num_heads=2, ffn_width=32),
    aligner=AlignerConfig(width=16, num_heads=2, ffn_width=32, num_layers=2, num_queries=5, max_positions=40),
    special_ids=SpecialIds(mask=44, eod=45, boi=46, eoi=47, eoc=48, eol=49),
)
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def make_model(*, with_aligner_decoder: bool = False, seed: int = 0) -> KosmosG:
    """A KosmosG with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return KosmosG(CONFIG, with_aligner_decoder=with_aligner_decoder).eval()


def make_diffusion(*, seed: int = 0, **schedule: object) -> Diffusion:
    """A U-Net and VAE with random weights; `schedule` overrides the noise schedule's settings."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=CONFIG.aligner.width,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=8,
    )
    return Diffusion(unet, vae, SCHEDULE | schedule)


def make_prompts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, token mask, image mask and pictures of three prompts: two images, none, one; right-padded."""
    boi, eoi = CONFIG.special_ids.boi, CONFIG.special_ids.eoi
    slots = CONFIG.resampler.num_queries
    image = [boi] * (slots + 1) + [eoi]
    rows = [[0, 7, *image, 9, *image], [0, 12, 13, 14], [0, *image, 30, 31]]
    width = max(len(row) for row in rows)
    tokens = torch.tensor([row + [CONFIG.special_ids.pad] * (width - len(row)) for row in rows])
    opens = (tokens == boi) & (tokens.roll(1, dims=1) != boi)
    pictures = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return tokens, tokens != CONFIG.special_ids.pad, (tokens == boi) & ~opens, pictures
