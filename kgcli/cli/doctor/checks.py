"""The checks of `kg doctor`: each gives lines that are good, doubtful or bad, with what to do."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kgcli.cli.doctor import machine, packages
from kgcli.errors import KgError
from kgcli.runtime import LARGE_MODEL, has_bfloat16_arithmetic, is_offline, user_cache
from kgcli.version import __version__

GOOD, DOUBTFUL, BAD = "ok", "note", "fault"
OLDEST_PYTHON = (3, 11)
FEW_BYTES = 2 * 10**9  # of free disk or memory; a full-size model takes several times as much


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    state: str  # GOOD, DOUBTFUL or BAD
    subject: str
    words: str

    def to_json(self) -> dict[str, str]:
        """Return the fields by name."""
        return asdict(self)


def examine(online: bool = False) -> Iterator[Finding]:
    """Run all checks, in order; the Hub is asked only if `online`."""
    torch = machine.probe_torch()
    needed = packages.closure()
    checks: list[Callable[[], Iterator[Finding]]] = [
        _versions,
        lambda: _packages(needed),
        lambda: _device(torch),
        _memory,
        _disks,
        _model,
        lambda: _hub(online),
        lambda: _size(needed),
    ]
    for check in checks:
        yield from check()


def gigabytes(number: float) -> str:
    """Return bytes as a text in GB."""
    return f"{number / 1e9:.1f} GB"


def _versions() -> Iterator[Finding]:
    python = platform.python_version()
    old = sys.version_info < OLDEST_PYTHON
    wanted = ".".join(map(str, OLDEST_PYTHON))
    yield Finding(GOOD, "kgcli", __version__)
    yield Finding(BAD if old else GOOD, "python", f"{python}; {wanted} or later is needed" if old else python)


def _packages(needed: dict[str, Any]) -> Iterator[Finding]:
    if packages.OWN not in needed:
        yield Finding(DOUBTFUL, "packages", "kgcli is not installed by pip; what it needs cannot be checked")
    lines = packages.faults(needed)
    for line in lines:
        yield Finding(BAD, "packages", f"{line}: pip install --upgrade kgcli")
    for line in packages.clashes():
        yield Finding(DOUBTFUL, "packages", line)
    if not lines and needed:
        yield Finding(GOOD, "packages", f"{len(needed)} installed, all versions fit")


def _device(torch: dict[str, Any]) -> Iterator[Finding]:
    if "error" in torch:
        yield Finding(BAD, "torch", f"{torch['error']}; install it again, see pytorch.org")
        return
    build = f"CUDA {torch['cuda']}" if torch.get("cuda") else f"ROCm {torch['hip']}" if torch.get("hip") else "CPU"
    yield Finding(GOOD, "torch", f"{torch['torch']}, built for {build}")
    device = machine.device_of(torch)
    names = ", ".join(
        f"{name} ({gigabytes(free)} of {gigabytes(total)} free)"
        for name, (free, total) in zip(torch["names"], torch["memory"], strict=True)
    )
    words = names or f"{machine.processor()}, {machine.cores()} cores, {torch['threads']} threads"
    yield Finding(GOOD, "device", f"{device}: {words}")
    half = {"cuda": "bfloat16" if torch.get("bfloat16") else "float16", "cpu": "bfloat16"}.get(device)
    if device == "cpu" and not has_bfloat16_arithmetic():
        half = None
    large = f", and {half} for models from {gigabytes(LARGE_MODEL)}" if half else ""
    yield Finding(GOOD, "dtype", f"auto is float32{large}")
    if device == "cpu" and machine.has_nvidia():
        why = "torch is a CPU build" if build == "CPU" else "the driver does not suit this torch"
        yield Finding(DOUBTFUL, "device", f"an NVIDIA GPU is here, but {why}; see pytorch.org/get-started")


def _memory() -> Iterator[Finding]:
    total, free = machine.memory()
    if total is None:
        yield Finding(DOUBTFUL, "memory", "the system does not tell")
        return
    words = f"{gigabytes(total)}" + ("" if free is None else f", {gigabytes(free)} available")
    low = free is not None and free < FEW_BYTES
    yield Finding(DOUBTFUL if low else GOOD, "memory", words)


def _disks() -> Iterator[Finding]:
    from kgcli.weights.published.catalogue import hub_cache

    for subject, folder in (("cache", user_cache()), ("hub cache", hub_cache()), ("here", Path.cwd())):
        free = machine.free_disk(folder)
        words = f"{folder}, " + ("free space unknown" if free is None else f"{gigabytes(free)} free")
        if not machine.can_write(folder):
            yield Finding(DOUBTFUL, subject, f"{words}; it cannot be written")
        else:
            yield Finding(DOUBTFUL if free is not None and free < FEW_BYTES else GOOD, subject, words)


def _model() -> Iterator[Finding]:
    from kgcli.weights.folder import open_model

    try:
        model = open_model()
    except KgError as error:
        yield Finding(BAD, "model", str(error))
        return
    yield Finding(GOOD, "model", f"{model.name}, {model.num_bytes / 1e6:.1f} MB, complete")


def _hub(online: bool) -> Iterator[Finding]:
    if is_offline():
        yield Finding(GOOD, "hub", "not asked: HF_HUB_OFFLINE is set")
    elif not online:
        yield Finding(GOOD, "hub", "not asked; kg doctor --online asks")
    elif (why := machine.ask_hub()) is not None:
        yield Finding(DOUBTFUL, "hub", f"does not answer ({why}); check network and proxy, or use --offline")
    else:
        yield Finding(GOOD, "hub", f"{os.environ.get('HF_ENDPOINT') or machine.HUB} answers")


def _size(needed: dict[str, Any]) -> Iterator[Finding]:
    sizes = {name: packages.size_of(one) for name, one in needed.items()}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    named = ", ".join(f"{name} {gigabytes(sizes[name])}" for name in largest)
    yield Finding(GOOD, "installed", f"{gigabytes(sum(sizes.values()))} in {len(sizes)} packages ({named})")
