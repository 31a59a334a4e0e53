"""The commands `kg doctor` and `kg env`."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from kgcli.cli.options import flag
from kgcli.cli.parsing.command import App
from kgcli.errors import IncompatibleError

# Shown in bug reports: of the rest only the names, since values may be secret.
SHOWN_VARIABLES = (
    *("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "KG_WEIGHTS", "KG_MODELS", "KG_DEBUG"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "XDG_CACHE_HOME", "PYTORCH_CUDA_ALLOC_CONF", "RANK", "WORLD_SIZE"),
)
NAMED = ("HF_", "HUGGING", "KG_", "TORCH", "PYTORCH", "CUDA", "OMP_", "MKL_")  # beginnings
VERSIONS_OF = (
    *("torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "safetensors", "huggingface_hub"),
    *("numpy", "pillow", "typer", "pydantic", "bitsandbytes", "pyarrow", "ray", "gradio"),
)

doctor_app = App()
env_app = App()


@doctor_app.command()
def doctor(
    online: Annotated[bool, flag("--online", help="Ask the Hugging Face Hub whether it answers.")] = False,
    as_json: Annotated[bool, flag("--json", help="Print one JSON object per line of the report.")] = False,
) -> None:
    """Check this installation and machine: versions, device, memory, disks, the shipped model, the Hub.

    Example: kg doctor --online
    """
    from kgcli.cli.doctor.checks import BAD, examine

    faults = 0
    for found in examine(online):
        faults += found.state == BAD
        print(
            json.dumps(found.to_json()) if as_json else f"{found.state:5}  {found.subject:9}  {found.words}", flush=True
        )
    if faults:
        raise IncompatibleError(f"{faults} fault(s) found; each line says what to do")


@env_app.command()
def env(as_json: Annotated[bool, flag("--json", help="Print one JSON object.")] = False) -> None:
    """Print versions, device and settings as text for a bug report; nothing secret is shown.

    Example: kg env
    """
    from kgcli.cli.doctor import machine
    from kgcli.runtime import versions

    torch = machine.probe_torch()
    total, _ = machine.memory()
    facts: dict[str, Any] = {
        **versions(VERSIONS_OF),
        "platform": _at_home(platform.platform()),
        "processor": f"{machine.processor()}, {machine.cores()} cores",
        "memory": "unknown" if total is None else f"{total / 1e9:.1f} GB",
        "device": torch.get("error") or ", ".join([machine.device_of(torch), *torch["names"]]),
        "cuda": str(torch.get("cuda") or "none"),
        **{name: _at_home(os.environ[name]) for name in SHOWN_VARIABLES if name in os.environ},
        "also set": ", ".join(sorted(_others())) or "none",
    }
    typer.echo(json.dumps(facts) if as_json else "\n".join(f"- {name}: {value}" for name, value in facts.items()))


def _others() -> set[str]:
    """Return the names of other variables that may matter."""
    return {name for name in os.environ if name.startswith(NAMED)} - {*SHOWN_VARIABLES}


def _at_home(text: str) -> str:
    """Return a text with ~ for the home folder and without the password of an address."""
    home = str(Path("~").expanduser())
    text = text.replace(home, "~") if len(home) > 1 else text
    before, at, after = text.rpartition("@")
    return f"{before.partition('://')[0]}://***@{after}" if at and "://" in before else text
