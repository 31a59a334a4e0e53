"""The same embeddings in everything made for Stable Diffusion: real classes, on the tiny and the shipped decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from PIL import Image, ImageDraw

from kgcli import KosmosGPipeline
from kgcli.config import SamplingConfig
from kgcli.inference.denoise import seeded
from kgcli.weights.shipped import DEFAULT_MODEL

TEXTS = ["a <image> in the snow", "a cat"]
RED = Image.new("RGB", (20, 20), "red")


class Case:
    """A model, embeddings of two prompts, and an image of its output size."""

    def __init__(self, folder):
        self.kosmos = KosmosGPipeline.from_pretrained(folder)
        self.embeds, self.negative = self.kosmos.encode_prompt(TEXTS, [RED, None])
        side = self.kosmos.model.cfg.generation.width
        self.unet = self.kosmos.decoder.unet
        self.image = Image.new("RGB", (side, side), "blue")
        ImageDraw.Draw(self.image).ellipse((side // 4, side // 4, side // 2, side // 2), fill="yellow")
        self.mask = Image.new("L", (side, side), 0)
        self.mask.paste(255, (0, 0, side // 2, side))

    def sample(self, pipeline, row=0, guided=True, **options):
        """Pixels in [0, 1] for one of the prompts."""
        pipeline.set_progress_bar_config(disable=True)
        if guided:
            options |= {"negative_prompt_embeds": self.negative[row : row + 1], "guidance_scale": 3.0}
        made = pipeline(
            prompt_embeds=self.embeds[row : row + 1],
            generator=seeded([1])[0],
            num_inference_steps=2,
            output_type="np",
            **options,
        )
        (pixels,) = made.images
        side = self.image.width
        assert pixels.shape == (side, side, 3) and np.isfinite(pixels).all()
        return pixels

    def control(self, seed):
        """A ControlNet of this decoder whose output is not nothing, as if it were trained."""
        depth = int(np.log2(self.kosmos.decoder.pixels_per_latent)) + 1
        network = ControlNetModel.from_unet(self.unet, conditioning_embedding_out_channels=(4, 8, 16, 32)[:depth])
        awaken(
            network.controlnet_down_blocks, network.controlnet_mid_block, network.controlnet_cond_embedding, seed=seed
        )
        return network.eval()


def awaken(*parts, seed, size=0.3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in parts:
            for parameter in part.parameters():
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module", params=["tiny", "nano"])
def case(request, tiny_model):
    return Case(tiny_model if request.param == "tiny" else DEFAULT_MODEL)


def laws(case, pipeline, **options):
    """Check that a pipeline is deterministic and follows the embeddings; return its image."""
    first, again, other = (case.sample(pipeline, row, **options) for row in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    return first


def test_stable_diffusion(case):
    pixels = laws(case, case.kosmos.make_pipeline(StableDiffusionPipeline), guidance_rescale=0.5)
    ours = case.kosmos.sample(
        case.embeds[:1],
        case.negative[:1],
        generators=seeded([1]),
        sampling=SamplingConfig(num_inference_steps=2, guidance_scale=3.0, guidance_rescale=0.5),
    )[0]
    assert np.array_equal((pixels * 255).round().astype(np.uint8), np.asarray(ours))


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")  # of older decoders
def test_components_make_a_pipeline(case):
    parts = case.kosmos.components
    made = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    assert made.unet is case.unet and type(made.scheduler) is type(parts["scheduler"])


def test_image_to_image(case):
    pipeline = case.kosmos.make_pipeline(StableDiffusionImg2ImgPipeline)
    laws(case, pipeline, image=case.image, strength=1.0)


def test_inpainting_keeps_what_the_mask_leaves(case):
    pipeline = case.kosmos.make_pipeline(StableDiffusionInpaintPipeline)
    channels = case.unet.config.in_channels
    case.unet.register_to_config(in_channels=4)  # diffusers expects 4 or 9, but blends any number of them
    try:
        pixels = laws(case, pipeline, image=case.image, mask_image=case.mask, strength=1.0)
        kept = case.sample(pipeline, image=case.image, mask_image=Image.new("L", case.mask.size, 0), strength=1.0)
    finally:
        case.unet.register_to_config(in_channels=channels)
    right = slice(case.image.width * 3 // 4, None)
    changed = np.abs(pixels - kept).mean(axis=(0, 2))
    assert changed[right].mean() < changed[: case.image.width // 2].mean()


def test_one_and_several_controlnets(case):
    plain = case.sample(case.kosmos.make_pipeline(StableDiffusionPipeline))
    one = case.kosmos.make_pipeline(StableDiffusionControlNetPipeline, controlnet=case.control(1))
    followed = laws(case, one, image=case.image)
    assert not np.array_equal(plain, followed)
    several = case.kosmos.make_pipeline(
        StableDiffusionControlNetPipeline, controlnet=[case.control(1), case.control(2)]
    )
    both = {"image": [case.image, case.image.rotate(90)]}
    assert not np.array_equal(followed, laws(case, several, **both, controlnet_conditioning_scale=[1.0, 0.5]))
    muted = case.sample(several, **both, controlnet_conditioning_scale=[1.0, 0.0])
    assert np.allclose(followed, muted, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning")  # its own doing
def test_t2i_adapter(case):
    # The feature sizes of a U-Net whose first block has no attention are those of the XL adapter.
    factor = 2 * case.kosmos.decoder.pixels_per_latent
    channels = list(case.unet.config.block_out_channels)
    torch.manual_seed(0)
    adapter = T2IAdapter(
        channels=channels, num_res_blocks=1, downscale_factor=factor, adapter_type="full_adapter_xl"
    ).eval()
    pipeline = case.kosmos.make_pipeline(StableDiffusionAdapterPipeline, adapter=adapter)
    adapted = laws(case, pipeline, image=case.image)
    assert not np.array_equal(adapted, case.sample(pipeline, image=case.image, adapter_conditioning_scale=0.0))


def test_latent_consistency(case):
    """A student of consistency distillation at its first step: the U-Net told of the guidance scale."""
    config = {**case.unet.config, "time_cond_proj_dim": 8}
    student = UNet2DConditionModel.from_config(config)
    missing, unexpected = student.load_state_dict(case.unet.state_dict(), strict=False)
    assert (missing, unexpected) == (["time_embedding.cond_proj.weight"], [])
    scheduler = LCMScheduler.from_config(case.kosmos.make_scheduler("lcm").config)
    parts = {"unet": student.eval(), "scheduler": scheduler}
    laws(case, case.kosmos.make_pipeline(LatentConsistencyModelPipeline, **parts), guided=False, guidance_scale=2.0)
    laws(case, case.kosmos.make_pipeline(StableDiffusionPipeline, scheduler=scheduler))
