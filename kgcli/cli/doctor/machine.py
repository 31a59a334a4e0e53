"""The machine: processors, memory, disks and devices, as far as they can be asked; nothing here raises."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

TIMEOUT = 120  # seconds for torch to be imported on a slow disk
HUB_TIMEOUT = 10  # seconds
HUB = "https://huggingface.co"
# Run by another Python, since a broken torch can end a process or never return.
PROBE = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())] if cuda else []
memory = [torch.cuda.mem_get_info(at) for at in range(len(names))]
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda, "hip": getattr(torch.version, "hip", None), "names": names,
    "memory": memory, "mps": torch.backends.mps.is_available(), "threads": torch.get_num_threads(),
    "bfloat16": cuda and torch.cuda.is_bf16_supported(including_emulation=False),
}))
"""


def probe_torch(timeout: float = TIMEOUT) -> dict[str, Any]:
    """Return what torch sees, or {"error": why it cannot be imported}."""
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": f"torch could not be asked: {error.__class__.__name__}"}
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1][:200] if lines else f"Python ended with code {done.returncode}"}


def device_of(found: dict[str, Any]) -> str:
    """Return the device that `--device auto` takes."""
    return "cuda" if found.get("names") else "mps" if found.get("mps") else "cpu"


def memory() -> tuple[int | None, int | None]:
    """Return the bytes of main memory: all, and those available; None where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        return tuple(int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))  # type: ignore[return-value]
    except (OSError, ValueError, KeyError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    except (AttributeError, ValueError, OSError):
        return None, None


def cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()


def free_disk(folder: Path) -> int | None:
    """Return the free bytes where a folder is or would be; None if that cannot be asked."""
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def can_write(folder: Path) -> bool:
    """Return True if a folder is, or could be made, writable."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place.is_dir() and os.access(place, os.W_OK)


def ask_hub() -> str | None:
    """Return why the Hub does not answer, None if it does."""
    address = os.environ.get("HF_ENDPOINT") or HUB
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT):
            return None
    except urllib.error.HTTPError:
        return None  # it answered
    except (OSError, ValueError) as error:
        return f"{address}: {getattr(error, 'reason', error)}"


def has_nvidia() -> bool:
    """Return True if the driver of an NVIDIA GPU is installed."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
