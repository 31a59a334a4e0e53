"""JSON schemas of recipes and model configurations, for editors; a field's description is the comment beside it."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from pydantic import BaseModel

from kgcli.config import ModelConfig
from kgcli.recipe import DataConfig, OptimConfig, Recipe

KINDS: dict[str, type[BaseModel]] = {"recipe": Recipe, "data": DataConfig, "optim": OptimConfig, "model": ModelConfig}


def make_schema(kind: str, stages: list[str]) -> dict[str, Any]:
    """Return the schema of a kind of file or of a part of one.

    Args:
        stages: names that a recipe's `stage` may have
    """
    model = KINDS[kind]
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    classes = _classes(model)
    for name, part in {model.__name__: schema, **schema.get("$defs", {})}.items():
        for field, comment in field_comments(classes[name]).items() if name in classes else ():
            part.get("properties", {}).get(field, {}).setdefault("description", comment)
    if kind == "recipe":
        schema["properties"]["stage"] = {"title": "Stage", "enum": stages}
    return schema


def field_comments(model: type[BaseModel]) -> dict[str, str]:
    """Return the comment of each field: at the end of its line, or in the lines above it."""
    lines = inspect.getsource(model).splitlines()
    fields = [node for node in ast.parse("\n".join(lines)).body[0].body if isinstance(node, ast.AnnAssign)]  # type: ignore[attr-defined]
    comments = {}
    for node in fields:
        _, marker, beside = lines[(node.end_lineno or node.lineno) - 1].partition("  # ")
        above: list[str] = []
        for line in reversed(lines[: node.lineno - 1]):
            if not line.strip().startswith("# "):
                break
            above.insert(0, line.strip().removeprefix("# "))
        if marker or above:
            comments[ast.unparse(node.target)] = beside if marker else " ".join(above)
    return comments


def _classes(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return a model and all models that its fields hold, by name."""
    found = {model.__name__: model}
    for field in model.model_fields.values():
        waiting = [field.annotation]
        while waiting:
            kind = waiting.pop()
            waiting += getattr(kind, "__args__", ())
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.__name__ not in found:
                found |= _classes(kind)
    return found
