"""What a command imports: never a library that it does not use, since imports are most of a short command's time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OTHERS = (
    "accelerate",
    "bitsandbytes",
    "cv2",
    "matplotlib",
    "pandas",
    "peft",
    "ray",
    "rich",
    "scipy",
    "sklearn",
    "timm",
)
COMPILERS = ("torch._inductor", "torch._dynamo.eval_frame", "triton")
TORCH = ("torch", "diffusers", "transformers", "torchvision", *OTHERS)
RUN = """
import json, sys
from kgcli.cli import main
try:
    main()
except SystemExit as left:
    assert not left.code, left.code
print(json.dumps(sorted(sys.modules)))
"""


def modules_of(*args):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", RUN, *map(str, args)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "unused"),
    [
        (["--help"], ("typer", "pydantic", "yaml", "numpy", *TORCH)),
        (["ls"], ("numpy", *TORCH)),
        (["validate", "smoke/align"], TORCH),
        (["inspect", ROOT / "tests/pinned/made_before.png"], TORCH),
        (["encode", "a <image:nano/cat.png>", "-o", "{out}/c.safetensors"], (*TORCH[1:], *COMPILERS)),
        (["generate", "a <image:nano/cat.png>", "--steps", "1", "-s", "1", "-o", "{out}/"], (*TORCH[2:], *COMPILERS)),
        (["edit", "nano/cat.png", "add a hat", "--steps", "1", "-s", "1", "-o", "{out}/"], (*TORCH[2:], *COMPILERS)),
        (
            ["generate", "a cat", "--controlnet", "canny=nano/dog.png", "--steps", "1", "-s", "1", "-o", "{out}/"],
            ("matplotlib", "pandas", "ray", "rich", "sklearn", "timm"),
        ),
    ],
)
def test_a_command_imports_what_it_uses(tmp_path, args, unused):
    loaded = modules_of(*(str(arg).format(out=tmp_path) for arg in args))
    assert not loaded & set(unused)


@pytest.mark.slow
def test_diffusers_is_imported_as_it_is_where_others_may_use_it():
    code = (
        "import kgcli; kgcli.KosmosGPipeline; from diffusers.utils import is_peft_available, is_transformers_available;"
        "assert is_peft_available() and is_transformers_available()"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


@pytest.mark.slow
def test_left_out_libraries_can_be_imported_later():
    code = (
        "from kgcli.inference.light_imports import import_diffusers; import_diffusers();"
        "import torch, scipy, peft, transformers;"
        "assert transformers.CLIPTextModel.__init__ and peft.LoraConfig;"
        "double = torch.compile(lambda x: 2 * x, backend='eager'); assert double(torch.ones(1)) == 2;"
        "assert torch._dynamo.eval_frame.OptimizedModule.__module__ == 'torch._dynamo.eval_frame'"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
