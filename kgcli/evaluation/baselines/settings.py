"""What a user says of drawing, and of a method's own: name=value pairs read by the types of defaults. No torch."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from kgcli.errors import UsageError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.inference.request import SCHEDULERS, Settings

PROTOCOL_SCHEDULERS = ("dpm++-sigma-min", "ddim-leading")  # of `samplers`, which loads diffusers
TRUTHS = {"true": True, "false": False, "1": True, "0": False}


def drawing_settings(options: MethodOptions) -> Settings:
    """What is said of drawing as settings, checked. Raises: UsageError."""
    settings = Settings(
        num_steps=options.num_steps,
        guidance_scale=options.guidance_scale,
        scheduler=options.scheduler,
        width=options.size,
        height=options.size,
    )
    if options.scheduler in PROTOCOL_SCHEDULERS:
        dataclasses.replace(settings, scheduler=None).check()
    elif options.scheduler is not None and options.scheduler not in SCHEDULERS:
        known = ", ".join(PROTOCOL_SCHEDULERS + SCHEDULERS)
        raise UsageError(f"--scheduler is {options.scheduler}; it must be one of {known}")
    else:
        settings.check()
    return settings


def read_settings(method: str, defaults: Mapping[str, Any], given: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The defaults with what was given in their place, each of its default's type.

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
    """See that numbers are not below what makes sense.

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
