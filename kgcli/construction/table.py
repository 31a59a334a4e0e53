"""All stages by part and name. A stage's module is imported when the stage is made: most bring torch with them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from kgcli.construction.config import BuildConfig, StageConfig
from kgcli.construction.stage import Options, Place, Stage
from kgcli.errors import ConfigError

# Part -> name -> module and class.
STAGES: dict[str, dict[str, str]] = {
    "filters": {
        "size": "filters:Size",
        "aspect": "filters:Aspect",
        "blank": "filters:Blank",
        "duplicates": "filters:Duplicates",
    },
    "safety": {"checker": "safety:SafetyChecker", "classifier": "safety:ImageClassifier"},
    "captioner": {"given": "given:Given", "model": "captioners:ModelCaptioner", "world": "world:WorldCaptioner"},
    "text_filters": {
        "words": "filters:Words",
        "script": "filters:Script",
        "language": "filters:Language",
        "blocklist": "filters:Blocklist",
    },
    "extractor": {
        "rules": "given:Rules",
        "json": "extractors:JsonExtractor",
        "list": "extractors:ListExtractor",
        "world": "world:WorldExtractor",
    },
    "segmenter": {
        "clipseg": "segmenters.clipseg:ClipSeg",
        "grounded-sam": "segmenters.grounded:GroundedSam",
        "sam3": "segmenters.sam3:Sam3",
        "florence2": "segmenters.florence2:Florence2",
        "vlm": "segmenters.grounding_vlm:GroundingVlm",
        "world": "world:WorldSegmenter",
    },
}
MODELS = ("model", "detector")  # options that name a model


def check_stages(config: BuildConfig) -> list[tuple[str, StageConfig, Options]]:
    """Return the stages in order with their parts and options. Raises: ConfigError for a name or option."""
    return [(part, cfg, _options(part, cfg)) for part, cfg in config.stages()]


def models_of(config: BuildConfig) -> list[str]:
    """Return the models that the stages name, each once. Raises: ConfigError."""
    found = [
        str(getattr(options, name))
        for _, _, options in check_stages(config)
        for name in MODELS
        if hasattr(options, name)
    ]
    return list(dict.fromkeys(found))


def stage_facts(config: BuildConfig, hashes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what decides the output of the stages: names, options, and the hashes of their models by name."""
    facts = []
    for part, cfg, options in check_stages(config):
        fact = {"part": part, "use": cfg.use, **options.model_dump(mode="json")}
        for name in MODELS:
            if name in fact:  # the weights decide, wherever they are
                fact[name] = hashes[fact[name]]
        facts.append(fact)
    return facts


def make_stages(config: BuildConfig, place: Place) -> list[tuple[str, Stage]]:
    """Return the stages in order, by `part/name`, models loaded. Raises: KgError."""
    return [(f"{part}/{cfg.use}", _type(part, cfg)(options, place)) for part, cfg, options in check_stages(config)]


def _type(part: str, cfg: StageConfig) -> Any:
    stages = STAGES[part]
    if cfg.use not in stages:
        near = difflib.get_close_matches(cfg.use, stages, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(stages)}"
        raise ConfigError(f"{part}: there is no {cfg.use!r}; {hint}")
    module, _, name = stages[cfg.use].partition(":")
    return getattr(import_module(f"kgcli.construction.{module}"), name)


def _options(part: str, cfg: StageConfig) -> Options:
    kind: type[Options] = _type(part, cfg).options_type
    try:
        return kind.model_validate(cfg.options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        names = ", ".join(kind.model_fields) or "none"
        raise ConfigError(f"{part}/{cfg.use}: {where}: {first['msg']}; its options are {names}") from None
