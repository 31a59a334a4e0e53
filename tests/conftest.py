"""Fixtures shared by all tests: a tiny model folder of real classes, and pictures to put into prompts."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from browsers import start_browser
from hypothesis import settings
from PIL import Image, ImageDraw

import kgcli

if hasattr(signal, "SIGHUP"):  # nohup and background jobs ignore it, and every process started here would too
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# Models this small are slower on several threads than on one, far slower on a busy machine. Read when torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Timing of single examples says nothing on a busy machine.
settings.register_profile("kgcli", deadline=None)
settings.load_profile("kgcli")

CAPTIONS = [
    "a red cat on the beach",
    "two dogs in the snow",
    "a cat in Minecraft",
    "a blue car in the city",
    "add a hat",
    "low quality",
] * 10


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder at toy size, randomly initialised: real KosmosG, real diffusers decoder, 16 px pictures."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny_model(folder)
    return folder


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    """A small picture of something, `cat.png`, in the test's own folder."""
    image = Image.new("RGB", (24, 24), "white")
    ImageDraw.Draw(image).ellipse((4, 6, 20, 22), fill=(220, 120, 40))
    path = tmp_path / "cat.png"
    image.save(path)
    return path


@dataclass(frozen=True)
class Ran:
    """What one run of `kg` gave."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines of stdout."""
        return self.out.splitlines()


@pytest.fixture
def kg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run `kg` in the test's own folder, in this interpreter (torch is loaded once)."""
    from kgcli.cli.app import run

    def call(*args: object) -> Ran:
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        code = run([str(arg) for arg in args])
        return Ran(code, *capfd.readouterr())

    return call


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caches of a test, as indices of shards, in its own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[object]:
    """Headless Chromium with a profile of its own; skips the test without one."""
    driver = start_browser(tmp_path / "profile")
    yield driver
    driver.quit()


@pytest.fixture
def without_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every attempt to load the engine, and torch with it, a failure."""
    monkeypatch.delattr(kgcli, "engine", raising=False)
    monkeypatch.setitem(sys.modules, "kgcli.engine", None)


def build_tiny_model(folder: Path) -> None:
    """Write the tiny model."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    from kgcli.config import ModelConfig
    from kgcli.data.tokenizer import train_sentencepiece
    from kgcli.model.kosmosg import KosmosG
    from kgcli.weights.load import save_kosmosg

    tokenizer = train_sentencepiece(CAPTIONS, 60, folder / "tokenizer")
    cfg = ModelConfig.model_validate(
        {
            "vision": {"image_size": 16, "patch_size": 8, "width": 16, "num_heads": 2, "num_layers": 1},
            "resampler": {"num_queries": 2, "num_heads": 2},
            "mllm": {
                "vocab_size": tokenizer.vocab_size,
                "width": 16,
                "num_layers": 1,
                "num_heads": 2,
                "ffn_width": 32,
                "max_positions": 64,
            },
            "aligner": {
                "width": 16,
                "num_heads": 2,
                "ffn_width": 32,
                "num_layers": 1,
                "num_queries": 4,
                "max_positions": 128,
            },
            "special_ids": tokenizer.special_ids.model_dump(),
            "decoder": "decoder",
            "max_images": 3,
            "generation": {"width": 16, "height": 16, "num_inference_steps": 2, "guidance_scale": 3.0},
        }
    )
    torch.manual_seed(0)
    save_kosmosg(KosmosG(cfg), folder)
    blocks = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    unet = UNet2DConditionModel(
        sample_size=8,
        cross_attention_dim=16,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **blocks,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16, **blocks
    )
    unet.save_pretrained(folder / "decoder" / "unet")
    vae.save_pretrained(folder / "decoder" / "vae")
    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    DDPMScheduler(**settings, clip_sample=False).save_pretrained(folder / "decoder" / "scheduler")
    (folder / "decoder" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
