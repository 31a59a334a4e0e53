"""Methods by name: those of the package, of installed packages, and of a user's file."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from kgcli.errors import UsageError
from kgcli.evaluation.baselines.base import Method, MethodOptions

ENTRY_POINTS = "kgcli.methods"
_HERE = "kgcli.evaluation.baselines"
METHODS = {
    "kosmosg": f"{_HERE}.kosmosg:KosmosG",
    "sd": f"{_HERE}.sd:StableDiffusion",
    "copy-input": f"{_HERE}.copy_input:CopyInput",
    "textual-inversion": f"{_HERE}.textual_inversion:TextualInversion",
    "dreambooth": f"{_HERE}.dreambooth:DreamBooth",
    "ip-adapter": f"{_HERE}.ip_adapter:IpAdapter",
}
GONE = {
    "blip-diffusion": "its classes in diffusers do not work with transformers 5; generate its images in another "
    "environment and score them with --images"
}
_NEEDED = ("facts", "prepare", "draw")


def make(name: str, options: MethodOptions) -> Method:
    """Make the method of a name, of `package.module:Class` or of `file.py:Class`.

    Raises: UsageError where there is none.
    """
    kind = _find(name)
    absent = [needed for needed in _NEEDED if not callable(getattr(kind, needed, None))]
    if absent or not isinstance(getattr(kind, "name", None), str):
        raise UsageError(
            f"--method {name}: it lacks {', '.join(absent) or 'a name'}; see kgcli.evaluation.baselines.base"
        )
    made: Method = kind(options)
    return made


def source_facts(name: str) -> dict[str, str]:
    """Return the hash of a user's method file, since its name does not identify what it does."""
    path = Path(name.rpartition(":")[0]).expanduser()
    return {"source_sha256": hashlib.sha256(path.read_bytes()).hexdigest()} if path.suffix == ".py" else {}


def absolute(name: str) -> str:
    """Return the name with an absolute path, for processes with another working folder."""
    path, colon, kind = name.rpartition(":")
    return f"{Path(path).expanduser().resolve()}{colon}{kind}" if path.endswith(".py") else name


def _find(name: str) -> Any:
    if name in GONE:
        raise UsageError(f"there is no method {name}: {GONE[name]}")
    target = METHODS.get(name, name)
    if ":" not in target:
        found = [entry for entry in entry_points(group=ENTRY_POINTS) if entry.name == name]
        if not found:
            raise UsageError(
                f"there is no method {name}; there are {', '.join([*METHODS, *_installed()])}, or "
                "package.module:Class, or file.py:Class"
            )
        target = found[0].value
    module_name, _, kind = target.rpartition(":")
    module = _module_of(module_name, name)
    if not isinstance(getattr(module, kind, None), type):
        raise UsageError(f"--method {name}: there is no class {kind} in {module_name}")
    return getattr(module, kind)


def _module_of(module_name: str, method: str) -> ModuleType:
    try:
        return _load_file(Path(module_name)) if module_name.endswith(".py") else import_module(module_name)
    except (ImportError, SyntaxError, OSError, ValueError, TypeError) as error:  # the last two for "" and ".name"
        raise UsageError(f"--method {method} cannot be loaded: {error}") from None


def _load_file(path: Path) -> ModuleType:
    """Load a Python file as a module, once per path."""
    path = path.expanduser().resolve(strict=True)
    name = f"kgcli_method_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is being made
    whole = False
    try:
        spec.loader.exec_module(module)
        whole = True
    finally:
        if not whole:
            del sys.modules[name]
    return module


def _installed() -> list[str]:
    return sorted(entry.name for entry in entry_points(group=ENTRY_POINTS))
