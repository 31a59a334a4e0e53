"""Bounded reading of text, JSON and YAML: limits on bytes, depth, aliases, numbers and characters.

Files (recipes, plans, scores, configurations, metadata) are untrusted; one that is larger or deeper than any real one
is refused in one line, in time linear in its length.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Hashable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, TypeAdapter, ValidationError

from kgcli.errors import KgError, MissingError, printable, reason

MAX_JSON_BYTES = 64 * 2**20
MAX_YAML_BYTES = 256 * 2**10  # the largest shipped recipe has 3 kB, and PyYAML reads about 300 kB/s
MAX_DEPTH = 32  # nested lists and mappings
MAX_VALUES = 5_000_000  # in one JSON text
MAX_YAML_VALUES = 20_000  # in one YAML text, each alias counted as all that it stands for
MAX_INTEGER = 2**64  # no setting, size or seed is larger

Record = TypeVar("Record")


def _check_below(name: str) -> str:
    path = PurePosixPath(name)
    if not name.isprintable() or "\\" in name or path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("must be a path below its folder, without .. or a root")
    return name


PathBelow = Annotated[str, AfterValidator(_check_below)]  # a field of a record that cannot lead out of its folder


def read_bytes(path: Path, *, max_bytes: int, error: type[KgError] = MissingError) -> bytes:
    """Return the bytes of a regular file that is no larger than a limit.

    Raises: `error`.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error(f"{printable(path)} is not a regular file")
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise error(f"there is no file {printable(path)}") from None
    except (OSError, ValueError) as fault:
        raise error(f"{printable(path)} cannot be read: {reason(fault)}") from None
    if len(data) > max_bytes:
        raise error(f"{printable(path)} is too large: the limit for such a file is {max_bytes:,} bytes")
    return data


def _open_without_waiting(path: str, flags: int) -> int:
    """Open as `open` does, but without waiting for whoever writes to a named pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_text(path: Path, *, max_bytes: int, error: type[KgError] = MissingError) -> str:
    """Return the UTF-8 text of a file, without the byte order mark that some editors put first.

    Raises: `error`.
    """
    data = read_bytes(path, max_bytes=max_bytes, error=error)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise error(f"{printable(path)} is not UTF-8 text (byte {fault.start}); save it as UTF-8") from None


def read_json(
    path: Path, *, max_bytes: int = MAX_JSON_BYTES, max_depth: int = MAX_DEPTH, error: type[KgError] = MissingError
) -> Any:
    """Return the JSON value in a file, within the limits. Raises: `error`."""
    text = read_text(path, max_bytes=max_bytes, error=error)
    return parse_json(text, name=printable(path), max_depth=max_depth, error=error)


def read_yaml(
    path: Path, *, max_bytes: int = MAX_YAML_BYTES, max_depth: int = MAX_DEPTH, error: type[KgError] = MissingError
) -> Any:
    """Return the YAML value in a file, within the limits. Raises: `error`."""
    text = read_text(path, max_bytes=max_bytes, error=error)
    return parse_yaml(text, name=printable(path), max_depth=max_depth, error=error)


def read_record(
    path: Path, kind: type[Record], *, max_bytes: int = MAX_JSON_BYTES, error: type[KgError] = MissingError
) -> Record:
    """Return the JSON of a file as a dataclass or model whose types and limits it keeps. Raises: `error`."""
    text = read_text(path, max_bytes=max_bytes, error=error)
    return parse_record(text, kind, name=printable(path), error=error)


def parse_record(text: str, kind: type[Record], *, name: str, error: type[KgError] = MissingError) -> Record:
    """Return a JSON text as a dataclass or model; `name` is for messages. Raises: `error`."""
    parse_json(text, name=name, error=error)  # for the limits
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise error(f"{name} is damaged or of another version: {where or 'the whole'}: {_one_line(message)}") from None


def parse_json(
    text: str | bytes,
    *,
    name: str,
    max_depth: int = MAX_DEPTH,
    error: type[KgError] = MissingError,
    allow_nan: bool = False,
) -> Any:
    """Return the value of a JSON text; `name` is for messages. Raises: `error`.

    Args:
        allow_nan: take NaN and infinity, as Python writes them into JSON
    """
    try:
        value = json.loads(text, parse_constant=float if allow_nan else _refuse_constant)
        _check_values(value, max_depth, MAX_VALUES, finite=not allow_nan)
    except RecursionError:
        raise error(f"{name} is nested too deeply: the limit is {max_depth} levels") from None
    except ValueError as fault:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise error(f"{name} is damaged, not valid JSON: {_one_line(fault)}") from None
    return value


def parse_yaml(text: str, *, name: str, max_depth: int = MAX_DEPTH, error: type[KgError] = MissingError) -> Any:
    """Return the value of a YAML text; `name` is for messages. Raises: `error`."""
    try:
        value = _load_yaml(text, max_depth)
        _check_values(value, max_depth, MAX_YAML_VALUES)
    except RecursionError:
        raise error(f"{name} is nested too deeply: the limit is {max_depth} levels") from None
    except (yaml.YAMLError, ValueError, OverflowError) as fault:
        raise error(f"{name} is not valid YAML: {_one_line(fault)}") from None
    return value


def _load_yaml(text: str, max_depth: int) -> Any:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_nodes(root, max_depth)  # before merge keys are expanded
        return loader.construct_document(root)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping of a node."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_nodes(root: yaml.Node, max_depth: int) -> None:
    """Refuse nodes that are deep, or many once each alias is replaced by all that it stands for.

    Raises: ValueError.
    """
    waiting, count = [(root, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        _check_extent(depth, max_depth, count, MAX_YAML_VALUES)
        if isinstance(node, yaml.MappingNode):
            waiting.extend((part, depth + 1) for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            waiting.extend((part, depth + 1) for part in node.value)


def _check_extent(depth: int, max_depth: int, count: int, max_values: int) -> None:
    if count > max_values:
        raise ValueError(f"it holds more than {max_values:,} values")
    if depth > max_depth:
        raise ValueError(f"it is nested more than {max_depth} levels deep")


def _check_values(root: Any, max_depth: int, max_values: int, *, finite: bool = True) -> None:
    """Refuse a value that is deep, large, or holds numbers or text that nothing can take.

    Raises: ValueError.
    """
    waiting, count = [(root, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        _check_extent(depth, max_depth, count, max_values)
        if isinstance(value, dict):
            waiting.extend((part, depth + 1) for pair in value.items() for part in pair)
        elif isinstance(value, list | tuple | set):
            waiting.extend((part, depth + 1) for part in value)
        elif isinstance(value, str):
            _check_text(value)
        elif isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise ValueError("it holds an integer of more than 64 bits")
        elif finite and isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"it holds the number {value}")


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is not text") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds the number {name}")


def _one_line(fault: Exception | str) -> str:
    return " ".join(str(fault).split())[:300]
