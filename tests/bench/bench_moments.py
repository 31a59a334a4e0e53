"""How much of an instruct step do cached VAE moments save, in the proportions of the published model?

Nano's VAE is small beside its U-Net. Here the published model and Stable Diffusion v1.5 stand at a quarter of their
widths, a quarter of their heads, a quarter of their sequence lengths and half of their sides in pixels: the real
classes, randomly initialised, and every part takes a 64th of its operations, so the fractions of a step are those at
full size. The operations of both are counted by torch and compared. (With all 8 heads of the U-Net its attention would
take a 16th of its exponentials, four times its share.)

Prints a table, then one JSON line: python tests/bench/bench_moments.py [--repeats 3] | tail -1
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from kgcli.config import ModelConfig
from kgcli.model.diffusion import Diffusion
from kgcli.model.kosmosg import KosmosG
from kgcli.reading import read_json
from kgcli.recipe import load_recipe
from kgcli.training.checks.compute import SampleSize, count_step, find_trained
from kgcli.training.checks.shapes import ShapeSetup
from kgcli.training.stages.kosmosg import InstructStage
from kgcli.weights.meta import on_meta
from kgcli.weights.shipped import SD15_SIZES

SMALLER = 64  # times, in operations
SIDE = 512  # pixels
NUM_TOKENS, NUM_IMAGES = 152, 2  # of a prompt at full size: two images of 64 tokens each, and words
LEAST = 1.3  # target
BATCH = 2


def full_size() -> dict[str, float]:
    """Return FLOPs of a sample's step at full size by part, forward and backward."""
    recipe = load_recipe("kosmosg/instruct", ["init_from={model: absent, decoder: absent}", "output_dir=unused"])
    setup = ShapeSetup(
        stage="instruct",
        init_from=recipe.init_from,
        parts={},
        options={},
        model=recipe.model,
        image_size=SIDE,
        seed=0,
        texts=lambda num, seed: [],
    )
    stage: Any = setup.build(InstructStage)
    stage.freeze()
    trained = find_trained(stage)
    costs = count_step(stage.requires_grad_(False), recipe, SampleSize(NUM_TOKENS, NUM_IMAGES), trained)
    found = {cost.part: cost.forward + cost.backward for cost in costs}
    with on_meta(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        stage.diffusion.vae.encode(torch.empty(1, 3, SIDE, SIDE))
    return found | {"vae": float(counter.get_total_flops())}


class QuarterStep:
    """An instruct step at a quarter of the widths, on one batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = KosmosG(quarter_model())
        self.diffusion = quarter_decoder()
        last = f"vision.blocks.{len(self.model.vision.blocks) - 1}."
        trains = ("mllm.", "resampler.", "vision.final_norm.", last, "aligner.encoder.")  # as the stage's own
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(trains))
        slots = self.model.cfg.resampler.num_queries
        self.tokens = torch.randint(10, 100, (BATCH, NUM_TOKENS // 4))
        self.image_mask = torch.zeros_like(self.tokens, dtype=torch.bool)
        self.image_mask[:, 1 : 1 + NUM_IMAGES * slots] = True
        side = self.model.cfg.vision.image_size
        self.images = torch.randn(BATCH * NUM_IMAGES, 3, side, side)
        self.targets = torch.rand(BATCH, 3, SIDE // 2, SIDE // 2) * 2 - 1
        self.moments = self.diffusion.moments(self.targets)
        self.noise = torch.randn_like(self.moments[0])

    def cached(self) -> None:
        """Train with moments that were cached."""
        self._train(*self.moments)

    def encoded(self) -> None:
        """Encode the targets, then train."""
        self._train(*self.diffusion.moments(self.targets))

    def _train(self, mean: torch.Tensor, logvar: torch.Tensor) -> None:
        mask = torch.ones_like(self.image_mask)
        conditioning = self.model.encode(self.tokens, mask, self.image_mask, self.images)
        latents = self.diffusion.sample_latents(mean, logvar, eps_BCHW=self.noise)
        times = torch.full((BATCH,), 500)
        self.diffusion.noise_loss(latents, conditioning, noise_BCHW=self.noise, timesteps_B=times).backward()


def quarter_model() -> ModelConfig:
    """Return the published sizes at a quarter of the widths and lengths."""
    full = ModelConfig()
    sizes = full.model_dump()
    for part in ("vision", "mllm", "aligner"):
        sizes[part]["width"] //= 4
        sizes[part]["num_heads"] //= 4
    sizes["vision"]["image_size"] //= 2
    sizes["mllm"]["ffn_width"] //= 4
    sizes["aligner"]["ffn_width"] //= 4
    sizes["aligner"]["num_queries"] //= 4
    sizes["resampler"]["num_queries"] //= 4
    sizes["resampler"]["num_heads"] //= 4
    sizes["mllm"]["vocab_size"] = 100  # looked up, not computed
    sizes["aligner"]["max_positions"] = sizes["mllm"]["max_positions"]
    sizes["special_ids"] = {name: place for place, name in enumerate(sizes["special_ids"])}
    return ModelConfig.model_validate(sizes)


def quarter_decoder() -> Diffusion:
    """Return Stable Diffusion v1.5's classes at a quarter of the widths, randomly initialised."""
    unet = read_json(SD15_SIZES / "unet" / "config.json", error=ValueError)
    vae = read_json(SD15_SIZES / "vae" / "config.json", error=ValueError)
    for sizes in (unet, vae):
        sizes["block_out_channels"] = [width // 4 for width in sizes["block_out_channels"]]
        sizes["norm_num_groups"] = 16
    unet["attention_head_dim"] //= 4  # diffusers' name for the number of heads: their widths stay those at full size
    unet["cross_attention_dim"] //= 4
    return Diffusion(UNet2DConditionModel.from_config(unet), AutoencoderKL.from_config(vae))


def count(run: Callable[[], object]) -> float:
    """Return the FLOPs of a call, per sample."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / BATCH


def measure(repeats: int) -> dict[str, Any]:
    """Return FLOPs, the least seconds of both steps that take turns, and their ratios: other work only adds to them."""
    full, step = full_size(), QuarterStep()
    flops = {name: count(getattr(step, name)) for name in ("cached", "encoded")}
    rest = sum(full.values()) - full["vae"]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in flops}
    for _ in range(repeats):
        for name, taken in seconds.items():
            wall, busy = time.perf_counter(), time.process_time()
            getattr(step, name)()
            taken.append((time.process_time() - busy, time.perf_counter() - wall))
    busy, wall = ({name: min(pair[place] for pair in taken) for name, taken in seconds.items()} for place in (0, 1))
    return {
        "full_size_tflops": {part: round(value / 1e12, 3) for part, value in full.items()},
        "full_size_ratio": (rest + full["vae"]) / rest,  # of operations
        "quarter_ratio": flops["encoded"] / flops["cached"],
        "smaller": {"step": rest / flops["cached"], "vae": full["vae"] / (flops["encoded"] - flops["cached"])},
        "processor_ratio": busy["encoded"] / busy["cached"],
        "wall_ratio": wall["encoded"] / wall["cached"],
        "processor_seconds": busy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args.repeats)
    print("TFLOPs of a sample at full size: " + ", ".join(f"{k} {v}" for k, v in found["full_size_tflops"].items()))
    print(f"operations with encoding / without: {found['full_size_ratio']:.2f} at full size, "
          f"{found['quarter_ratio']:.2f} here, at {found['smaller']['step']:.0f} and {found['smaller']['vae']:.0f} "
          "times fewer")  # fmt: skip
    print(f"processor time: {found['processor_ratio']:.2f} x, wall: {found['wall_ratio']:.2f} x (at least {LEAST})")
    facts = {"theme": "moments", "machine": platform.processor(), "torch": torch.__version__}
    print(json.dumps(facts | {"met": found["processor_ratio"] >= LEAST} | found))


if __name__ == "__main__":
    main()
