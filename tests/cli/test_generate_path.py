"""Length of the call path from the shell to diffusers."""

import sys
from pathlib import Path

import pytest

import kgcli
from kgcli.cli import main

PACKAGE = str(Path(kgcli.__file__).parent)
MOST_CALLS = 5


@pytest.mark.parametrize("num_images", [1, 2])
def test_few_calls_lead_to_the_denoising_call(tiny_model, tmp_path, monkeypatch, capsys, num_images):
    from diffusers import StableDiffusionPipeline

    chains, denoise = [], StableDiffusionPipeline.__call__

    def noted(self, *args, **options):
        frame, chain = sys._getframe(1), []
        while frame is not None:
            if frame.f_code.co_filename.startswith(PACKAGE):
                chain.append(frame.f_code.co_qualname)
            frame = frame.f_back
        chains.append(chain)
        return denoise(self, *args, **options)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", noted)
    flags = ["--model", str(tiny_model), "--steps", "1", "-s", "1", "-n", str(num_images), "-o", f"{tmp_path}/"]
    with pytest.raises(SystemExit) as left:
        main(["generate", "a cat", *flags])
    assert left.value.code == 0, capsys.readouterr().err
    assert len(chains) == num_images
    assert all(len(chain) <= MOST_CALLS for chain in chains), chains[0]
