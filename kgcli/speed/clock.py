"""Seconds, memory and arithmetic of a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16 or fp16 arithmetic in TFLOP/s, by a part of the name that torch gives a card. Source: NVIDIA's data sheets.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A10": 125.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
    "V100": 125.0,
    "T4": 65.0,
}


class Times(NamedTuple):
    """Seconds of one call."""

    wall: float
    busy: float  # of the processor on a CPU, which other work on the machine hardly changes; else as `wall`


def take_turns(calls: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[Times]]:
    """Return the seconds of each call, round by round in alternating order, after one round that is not timed.

    In turns a busy machine slows all of them, and their ratio stays.
    """
    taken: dict[str, list[Times]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for round_number in range(repeats):
        for name in list(calls) if round_number % 2 else list(calls)[::-1]:
            taken[name].append(seconds_of(calls[name], device))
    return taken


def seconds_of(call: Callable[[], object], device: str) -> Times:
    """Return the seconds of a call, the device's work included."""
    synchronize(device)
    start, processor = time.perf_counter(), time.process_time()
    call()
    synchronize(device)
    wall, busy = time.perf_counter() - start, time.process_time() - processor
    return Times(wall, busy if device.startswith("cpu") else wall)


def ratio(one: list[Times], other: list[Times]) -> float:
    """Return the median over rounds of one call's busy seconds over the other's."""
    return statistics.median(a.busy / b.busy for a, b in zip(one, other, strict=True))


def synchronize(device: str) -> None:
    """Wait for the work of a device; a CPU has none that is not done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


def count_flops(call: Callable[[], object]) -> int:
    """Return the floating-point operations of a call: two for each multiplication and addition of matrix products,
    convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def device_name(device: str) -> str:
    """Return the name of a device as its maker gives it."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def arithmetic(flops: float, seconds: float, device: str) -> dict[str, Any]:
    """Return the rate of arithmetic and, on a known GPU, its fraction of the card's peak (MFU).

    The peak is that of half precision, whatever the precision at hand.
    """
    found: dict[str, Any] = {"tflops_per_second": flops / seconds / 1e12}
    name = device_name(device)
    peak = next((value for part, value in PEAK_TFLOPS.items() if part in name), None)
    if device.startswith("cuda") and peak is not None:
        found["mfu"] = found["tflops_per_second"] / peak
    return found
