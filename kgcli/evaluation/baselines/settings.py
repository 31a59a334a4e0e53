"""Sampling settings, and a method's own settings: name=value pairs parsed by the types of the defaults."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from kgcli.config import SCHEDULERS, SamplingConfig
from kgcli.errors import UsageError

PROTOCOL_SCHEDULERS = ("dpm++-sigma-min", "ddim-leading")  # of `samplers`, which loads diffusers
RECORDED = {  # name of a setting -> its name in plan.json
    "num_inference_steps": "num_steps",
    **{name: name for name in ("guidance_scale", "guidance_rescale", "scheduler", "width", "height")},
}
TRUTHS = {"true": True, "false": False, "1": True, "0": False}


def check_sampling(sampling: SamplingConfig) -> SamplingConfig:
    """Check and return sampling settings; protocols may name samplers that users' commands do not take.

    Raises: UsageError.
    """
    if sampling.scheduler in PROTOCOL_SCHEDULERS:
        sampling.model_copy(update={"scheduler": None}).check()
    elif sampling.scheduler is not None and sampling.scheduler not in SCHEDULERS:
        known = ", ".join(PROTOCOL_SCHEDULERS + SCHEDULERS)
        raise UsageError(f"--scheduler is {sampling.scheduler}; it must be one of {known}")
    else:
        sampling.check()
    return sampling


def sampling_facts(sampling: SamplingConfig) -> dict[str, Any]:
    """Return the settings under the names used in run files."""
    given = sampling.given()
    return {recorded: given[name] for name, recorded in RECORDED.items() if name in given}


def read_settings(method: str, defaults: Mapping[str, Any], given: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the defaults updated with the given values, each of its default's type.

    Raises: UsageError for a name that the method does not have (it names the nearest) or a value of another type.
    """
    settings = dict(defaults)
    for name, text in given:
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(defaults)) or 'none'}"
            raise UsageError(f"--method {method} has no setting {name}; {hint}")
        settings[name] = _read(method, name, text, type(defaults[name]))
    return settings


def check_range(method: str, settings: Mapping[str, Any], least: Mapping[str, float]) -> None:
    """Check that numbers are not below their lower bounds.

    Raises: UsageError.
    """
    for name, bound in least.items():
        if settings[name] < bound:
            raise UsageError(f"--method {method}: {name} is {settings[name]}; it must be at least {bound:g}")


def _read(method: str, name: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return TRUTHS[text.strip().lower()]
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except (ValueError, KeyError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UsageError(f"--method {method}: {name} is {text}; it must be {wanted}") from None
    return value
