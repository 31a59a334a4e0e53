"""Weight files: read one (or its shards), assign the weights to a module after checking every name, write one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kgcli.errors import IncompatibleError, MissingError
from kgcli.files import whole_file, write_whole
from kgcli.weights.tensor_files import save_tensors

STORED_DTYPES = {  # as safetensors names those of weights
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}  # as users name them
NUM_NAMED = 3  # names that an error message lists of each kind


def read_weights(
    path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Read the tensors of `NAME.safetensors`, or of the shards listed by `NAME.safetensors.index.json` beside it.

    Tensors are read and cast one at a time, so memory never holds a second copy.

    Raises:
        MissingError: a file is not there or is damaged.
    """
    return dict(iter_weights(path, device=device, dtype=dtype))


def iter_weights(
    path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of `read_weights` one at a time; on device `meta`, shapes from the header alone.

    Raises:
        MissingError: a file is not there or is damaged.
    """
    for shard in _shards(path):
        on_meta = str(device) == "meta"
        try:
            with safe_open(shard, framework="pt", device="cpu" if on_meta else str(device)) as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    tensor = _shape_of(file.get_slice(name)) if on_meta else file.get_tensor(name)
                    yield name, tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        except (SafetensorError, OSError) as error:
            raise MissingError(f"{shard} is damaged ({error}); fetch or copy it again") from None


def _shape_of(stored: Any) -> Tensor:
    """Return a tensor of a file on the meta device, of its shape and dtype."""
    return torch.empty(stored.get_shape(), dtype=STORED_DTYPES[stored.get_dtype()], device="meta")


def stored_names(path: Path) -> set[str]:
    """Return the names in a weight file or its shards, reading no tensor. Raises: MissingError."""
    names: set[str] = set()
    for shard in _shards(path):
        try:
            with safe_open(shard, framework="pt") as file:
                names.update(file.keys())
        except (SafetensorError, OSError) as error:
            raise MissingError(f"{shard} is damaged ({error}); fetch or copy it again") from None
    return names


def assign_weights(
    module: nn.Module, weights: Mapping[str, Tensor], *, source: str, fresh: tuple[str, ...] = ()
) -> None:
    """Assign weights to `module`; names under a prefix of `fresh` may be absent and are left unchanged.

    Raises:
        IncompatibleError: a weight is missing, unexpected or of another shape.
    """
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    check_weights(shapes, {name: tensor.shape for name, tensor in weights.items()}, source=source, fresh=fresh)
    module.load_state_dict(weights, strict=False, assign=True)


def check_weights(
    expected: Mapping[str, torch.Size],
    found: Mapping[str, torch.Size],
    *,
    source: str,
    fresh: tuple[str, ...] = (),
    num_named: int = NUM_NAMED,
) -> None:
    """Compare names and shapes.

    Raises:
        IncompatibleError: they differ; the message names the first `num_named` of each kind.
    """
    missing = [name for name in expected if name not in found and not name.startswith(fresh)]
    unexpected = [name for name in found if name not in expected]
    misshaped = [
        f"{name} {tuple(found[name])} for {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped)]
    listed = [f"{len(names)} {kind} ({_few(names, num_named)})" for kind, names in faults if names]
    if listed:
        raise IncompatibleError(f"the weights of {source} do not fit this model: {'; '.join(listed)}")


def write_weights(path: Path, weights: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file atomically."""
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
        for name, tensor in weights.items()
    }
    with whole_file(path) as partial:
        save_tensors(partial, tensors)


def write_shards(
    path: Path,
    num_bytes: Mapping[str, int],
    read: Callable[[], Mapping[str, Tensor]],
    *,
    shard_size: int,
    dtype: torch.dtype | None = None,
) -> int:
    """Write weights as files of at most `shard_size` bytes, with the index that `read_weights` follows.

    `read` is called once per file and its result is freed afterwards: if it memory-maps a file, at most one shard's
    pages are held. `num_bytes` gives the order and the size as written of each weight. Returns the number of files.
    """
    groups = _group(num_bytes, shard_size)
    if len(groups) == 1:
        write_weights(path, _select(read(), groups[0]), dtype=dtype)
        return 1
    places: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        shard = path.with_name(f"{path.stem}-{number:05d}-of-{len(groups):05d}{path.suffix}")
        write_weights(shard, _select(read(), names), dtype=dtype)
        places |= dict.fromkeys(names, shard.name)
    index = {"metadata": {"total_size": sum(num_bytes.values())}, "weight_map": places}
    write_whole(path.with_name(f"{path.name}.index.json"), json.dumps(index, indent=1) + "\n")
    return len(groups)


def _group(num_bytes: Mapping[str, int], shard_size: int) -> list[list[str]]:
    """Group names, in order, into shards of at most `shard_size` bytes; a larger weight is a shard of its own."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in num_bytes.items():
        if groups[-1] and filled + size > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _select(weights: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    return {name: weights[name] for name in names}


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    index = path.with_name(f"{path.name}.index.json")
    if not index.is_file():
        raise MissingError(f"there is no {path.name} in {path.parent}; a model folder has one")
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise MissingError(f"{index} is damaged; fetch or copy it again") from None
    shards = [path.parent / Path(name).name for name in names]  # a shard lies beside its index, nowhere else
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise MissingError(f"{path.parent} lacks {len(absent)} of {len(shards)} weight files ({_few(absent)})")
    return shards


def _few(names: Iterable[str], num_named: int = NUM_NAMED) -> str:
    names = list(names)
    return ", ".join(names[:num_named]) + (", ..." if len(names) > num_named else "")
