"""Whether the MLLM can be held in 8 or 4 bits here: asked before anything is loaded. No torch."""

from __future__ import annotations

from importlib.util import find_spec

from kgcli.config import QUANTIZE
from kgcli.errors import IncompatibleError, UsageError

LIBRARY = "bitsandbytes"
DEVICES = ("cpu", "cuda")  # where the library computes without fetching kernels from elsewhere


def check_quantize(name: str, device: str = "auto") -> None:
    """Refuse what cannot be loaded; `none` always can.

    Raises:
        UsageError: there is no such kind, or the library is not installed.
        IncompatibleError: the device cannot compute with it.
    """
    if name not in QUANTIZE:
        raise UsageError(f"--quantize is {name}; it must be one of {', '.join(QUANTIZE)}")
    if name == "none":
        return
    if find_spec(LIBRARY) is None:
        raise UsageError(f"--quantize {name} needs {LIBRARY}, which is not installed: pip install 'kgcli[quant]'")
    kind = device.partition(":")[0]
    if kind not in ("auto", *DEVICES):
        raise IncompatibleError(
            f"--quantize {name} cannot compute on {device}; use --device {' or '.join(DEVICES)}, or --quantize none"
        )
