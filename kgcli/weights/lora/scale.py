"""The scale of each layer of a LoRA, alpha / rank.

Sources in order: an alpha among the tensors; peft's configuration, in the file's header (`lora_adapter_metadata`, as
diffusers writes it) or beside it (adapter_config.json); a plain `alpha` in the header; else 1. kohya's
`ss_network_alpha` is ignored: its files hold alphas as tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kgcli.errors import IncompatibleError, MissingError

ADAPTER_METADATA = "lora_adapter_metadata"
MAX_CONFIG = 4_000_000  # bytes of adapter_config.json
MAX_PATTERN = 300  # characters
_PLAIN = re.compile(r"\^?(?:[\w-]|\\?\.|\.\*)+\$?")  # of peft's patterns, which may be any regex
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that also change the base weights


@dataclass(frozen=True)
class LoraScale:
    """The layer scales given by a file's header or configuration."""

    alpha: float | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False  # alpha / sqrt(rank). Source: arXiv:2312.03732
    uses_dora: bool = False

    @classmethod
    def read(cls, file: Path, config: Path | None) -> LoraScale:
        """Read the header of a safetensors file and, where given, peft's configuration beside it.

        Raises: MissingError for a damaged one; IncompatibleError for an unsupported adapter.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(file), "np") as opened:
                header = opened.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise MissingError(f"the LoRA file {file} cannot be read: {error}") from None
        if config is not None:
            return cls._of_peft(_read_config(config), config.name)
        if ADAPTER_METADATA in header:
            return cls._of_peft(_parse(header[ADAPTER_METADATA], f"the header of {file.name}"), file.name)
        for name in ("alpha", "lora_alpha", "network_alpha"):
            if name in header:
                return cls(alpha=_number(header[name], name, file.name))
        return cls()

    @classmethod
    def _of_peft(cls, config: Mapping[str, Any], source: str) -> LoraScale:
        """Parse peft's configuration, whose names may be prefixed with `unet.`."""
        if any(name.startswith("unet.") for name in config):
            config = {name.removeprefix("unet."): value for name, value in config.items() if name.startswith("unet.")}
        kind = str(config.get("peft_type", "LORA"))
        if kind.rpartition(".")[2].upper() != "LORA":
            raise IncompatibleError(f"{source}: this adapter is of the kind {kind[:40]}; only LoRA is supported")
        start = str(config.get("init_lora_weights", ""))
        if start.lower().startswith(_CHANGES_BASE):
            raise IncompatibleError(
                f"{source}: init_lora_weights is {start[:40]}, which also changes the base weights: convert it "
                "with peft (path_initial_model_for_weight_conversion)"
            )
        alpha, pattern = config.get("lora_alpha"), config.get("alpha_pattern") or {}
        if not isinstance(pattern, dict):
            raise IncompatibleError(f"{source}: alpha_pattern is not a table of names and numbers")
        return cls(
            alpha=None if alpha is None else _number(alpha, "lora_alpha", source),
            alpha_pattern={_checked(key, source): _number(value, key, source) for key, value in pattern.items()},
            rslora=config.get("use_rslora") is True,
            uses_dora=config.get("use_dora") is True,
        )

    def of(self, layer: str, rank: int) -> float:
        """Return the scale of a layer (in diffusers' names) that has no alpha tensor."""
        alpha = next((value for key, value in self.alpha_pattern.items() if _matches(key, layer)), self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _matches(pattern: str, layer: str) -> bool:
    """Match the end of a layer's name, from a dot on, as peft does."""
    return re.match(rf"(.*\.)?({pattern})$", layer) is not None


def _checked(pattern: str, source: str) -> str:
    """Refuse patterns that could take exponential time. Raises: IncompatibleError."""
    if len(pattern) > MAX_PATTERN or pattern.count("*") > 3 or not _PLAIN.fullmatch(pattern):
        raise IncompatibleError(f"{source}: the alpha_pattern {pattern[:60]!r} is not a plain layer name")
    return pattern.removesuffix("$")


def _number(value: object, name: str, source: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise IncompatibleError(f"{source}: {name[:60]} is {str(value)[:40]!r}, which is not a number")
    return number


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise MissingError(f"{path} is damaged: it is larger than any adapter_config.json")
        return _parse(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError):
        raise MissingError(f"{path} cannot be read; fetch or copy it again") from None


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise MissingError(f"the LoRA's configuration in {source} is damaged (no JSON table); fetch or copy it again")
    return values
