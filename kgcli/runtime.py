"""The machine and its environment: device, precision, memory, offline mode, versions.

torch is imported only when a device is looked up.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from kgcli.errors import IncompatibleError, OutOfMemoryError, UsageError
from kgcli.version import __version__

DEVICES = ("cpu", "cuda", "mps")
DTYPES = ("float32", "float16", "bfloat16")
LARGE_MODEL = 10**9  # bytes of weights from which `auto` takes half precision on a GPU
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}  # features of a CPU
QUANTIZE_LIBRARY = "bitsandbytes"
QUANTIZE_DEVICES = ("cpu", "cuda")  # where the library computes without fetching kernels from elsewhere

own_process = False  # set where the process runs one command of `kg` and nothing else

# How torch says so on a CPU, on Apple's GPUs, and in CUDA's libraries.
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|_ALLOC_FAILED")

_log = logging.getLogger(__name__)


def choose_device(name: str) -> str:
    """Return the device of a name; `auto` is the fastest available.

    Raises: IncompatibleError if it is not available, UsageError for an unknown kind.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.partition(":")[0]
    if kind not in DEVICES:
        raise UsageError(f"--device is {name}; it must be auto or one of {', '.join(DEVICES)} (cuda:1 for the second)")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    try:
        index = torch.device(name).index or 0
    except RuntimeError:
        raise UsageError(f"--device is {name}; write {kind} or {kind}:0") from None
    if index and kind != "cuda":
        raise IncompatibleError(f"--device is {name}, but there is only one {kind} device; write --device {kind}")
    if not available[kind] or (kind == "cuda" and index >= torch.cuda.device_count()):
        raise IncompatibleError(f"--device is {name}, but there is no such device here; use --device cpu or auto")
    return name


def choose_dtype(name: str, device: str, num_bytes: int) -> str:
    """Return the precision of a name; `auto` is half for large models where that is faster, else full: on a GPU, in
    bfloat16 if it has that, and on a CPU with bfloat16 arithmetic of its own.

    Small models stay in full precision: they are fast in any, and replay alike on any machine.

    Args:
        num_bytes: size of the model's weight files

    Raises: UsageError.
    """
    if name == "auto":
        if num_bytes < LARGE_MODEL:
            return "float32"
        if device.startswith("cpu"):
            return "bfloat16" if has_bfloat16_arithmetic() else "float32"
        if not device.startswith("cuda"):
            return "float32"
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if name not in DTYPES:
        raise UsageError(f"--dtype is {name}; it must be auto or one of {', '.join(DTYPES)}")
    return name


def has_bfloat16_arithmetic(file: Path = Path("/proc/cpuinfo")) -> bool:
    """Return True if the CPU multiplies in bfloat16 itself; others emulate it, many times slower than float32.

    Args:
        file: the kernel's list of the CPU's features; without one, as on other systems than Linux, the answer is no
    """
    try:
        flags = re.search(r"^flags\s*:(.*)$", file.read_text("utf-8"), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not BFLOAT16_FLAGS.isdisjoint(flags[1].split())


def choose_offload(name: str, device: str) -> str:
    """Return the offload mode, `none` on a device without memory of its own.

    Raises: UsageError.
    """
    from kgcli.config import OFFLOADS

    if name not in OFFLOADS:
        raise UsageError(f"--offload is {name}; it must be one of {', '.join(OFFLOADS)}")
    if name != "none" and not device.startswith("cuda"):
        _log.warning("--offload %s has no effect: %s uses main memory", name, device)
        return "none"
    return name


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's out-of-memory errors into ours.

    Raises: OutOfMemoryError that names the flags to try.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise OutOfMemoryError(
            "out of GPU memory: try --batch-size 1, --offload model (or sequential), --dtype float16, or a smaller -W "
            "and -H"
        ) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
            raise
        raise OutOfMemoryError("out of memory: try --batch-size 1, a smaller -W and -H, or --dtype bfloat16") from None


def free_memory(file: Path = Path("/proc/meminfo")) -> int | None:
    """Return the main memory that is available in bytes, None if the system does not tell."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", file.read_text("utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 2**10 if found else None


def peak_memory(device: str) -> int:
    """Return the most bytes that were in use: tensors of a GPU, or this process's main memory."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 2**10


def choose_threads(num_bytes: int, load: float | None = None, num_cores: int | None = None) -> int:
    """Return the number of CPU threads that is fastest for a model whose weight files have `num_bytes`.

    The parts of a small model are done before a second thread has started. Those of a large one are shared by the
    cores that are free: threads wait for each other many times per step, so a single one that has no core of its own
    holds all others up.

    Args:
        load: processes that run or wait for a core, by default this machine's mean over the last minute
        num_cores: by default those that this process may use
    """
    if num_bytes < LARGE_MODEL:
        return 1
    cores = num_cores or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, cores - int(load))


def set_threads(number: int) -> None:
    """Compute on a number of CPU threads, unless OMP_NUM_THREADS is set; for a process of our own, before torch loads.

    Threads that wait for others sleep: by default they keep their cores busy, which on a loaded machine takes those
    from the threads that are waited for.
    """
    if own_process and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(number)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def use_one_thread(device: str) -> None:
    """Compute on one CPU thread from now on, where the device is a CPU: sums depend on the number of threads, and the
    images of a benchmark must not."""
    import torch

    if device == "cpu":
        torch.set_num_threads(1)


def check_quantize(name: str, device: str = "auto") -> None:
    """Refuse a quantization that cannot be loaded; `none` always can.

    Raises:
        UsageError: unknown kind, or the library is not installed.
        IncompatibleError: the device cannot compute with it.
    """
    from kgcli.config import QUANTIZE

    if name not in QUANTIZE:
        raise UsageError(f"--quantize is {name}; it must be one of {', '.join(QUANTIZE)}")
    if name == "none":
        return
    if find_spec(QUANTIZE_LIBRARY) is None:
        raise UsageError(
            f"--quantize {name} needs {QUANTIZE_LIBRARY}, which is not installed: pip install 'kgcli[quant]'"
        )
    kind = device.partition(":")[0]
    if kind not in ("auto", *QUANTIZE_DEVICES):
        raise IncompatibleError(
            f"--quantize {name} cannot compute on {device}; use --device {' or '.join(QUANTIZE_DEVICES)}, "
            "or --quantize none"
        )


def check_compile(wanted: bool, device: str, offload: str = "none") -> None:
    """Refuse compilation that cannot work; `device` is a chosen one or auto.

    Raises: UsageError; IncompatibleError without a C++ compiler, which torch needs on a CPU.
    """
    if not wanted:
        return
    if offload != "none":
        raise UsageError(f"--compile and --offload {offload} exclude each other; leave one out")
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++", "cl"]
    if device.startswith("cpu") and not any(map(shutil.which, compilers)):
        raise IncompatibleError("--compile needs a C++ compiler such as g++, and there is none; leave it out")


def environment_shard() -> tuple[int, int]:
    """Return the rank and world size set by torchrun, accelerate launch or MPI."""
    for rank, world in (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")):
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1


def is_offline(asked: bool = False) -> bool:
    """Return True if nothing may be downloaded: by the flag, or by HF_HUB_OFFLINE."""
    return asked or os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "True")


def user_cache() -> Path:
    """Return the folder for files that can be recreated: kgcli in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kgcli"


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of kgcli, Python and those packages that are installed."""
    found = {"kgcli": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
