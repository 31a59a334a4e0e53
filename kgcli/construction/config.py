"""Settings of a construction: a YAML file, overridden by key=value."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kgcli.errors import ConfigError
from kgcli.reading import parse_yaml, read_yaml


class StageConfig(BaseModel):
    """A stage by name, with its options beside the name: {use: clipseg, model: FOLDER, threshold: 0.3}."""

    model_config = ConfigDict(extra="allow", frozen=True)

    use: str

    @property
    def options(self) -> dict[str, Any]:
        """The options."""
        return dict(self.model_extra or {})


class BuildConfig(BaseModel):
    """Settings of `kg data build compositional`; the defaults need one model, CLIPSeg."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    square: bool = True  # crop the middle square of each image first, as published
    size: int = Field(default=512, ge=16, le=4096)  # pixels of the images and crops that are written
    format: Literal["jpg", "png", "webp"] = "jpg"
    quality: int = Field(default=95, ge=1, le=100)  # of jpg and webp
    filters: tuple[StageConfig, ...] = (
        StageConfig(use="size"),
        StageConfig(use="aspect"),
        StageConfig(use="blank"),
        StageConfig(use="duplicates"),
    )
    safety: tuple[StageConfig, ...] = ()
    captioner: StageConfig = StageConfig(use="given")
    text_filters: tuple[StageConfig, ...] = (StageConfig(use="words"),)
    extractor: StageConfig = StageConfig(use="rules")
    segmenter: StageConfig = StageConfig(use="clipseg")

    def stages(self) -> list[tuple[str, StageConfig]]:
        """Return the stages in order with their part: images are filtered first, models come after."""
        parts = [("filters", one) for one in self.filters] + [("safety", one) for one in self.safety]
        parts += [("captioner", self.captioner), *(("text_filters", one) for one in self.text_filters)]
        return [*parts, ("extractor", self.extractor), ("segmenter", self.segmenter)]


def load_config(path: Path | None, overrides: list[str]) -> BuildConfig:
    """Read the settings of a file, with `key=value` of the command over them.

    Raises: ConfigError that names the first fault.
    """
    values = read_yaml(path, error=ConfigError) if path else {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is no list of settings: it holds no keys")
    for override in overrides:
        _set(values, override)
    try:
        return BuildConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise ConfigError(f"{path or 'the settings'}: {where}: {first['msg']}") from None


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no setting; write key=value, as segmenter.use=sam3")
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r}: {parent} has no keys below it")
        values = inner
    values[last] = parse_yaml(text, name=f"the value of {override[:80]!r}", error=ConfigError)
