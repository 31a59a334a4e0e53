"""Import of diffusers for a process that only generates, without unused libraries.

diffusers imports bitsandbytes, peft, accelerate and scipy if they are installed, transformers for the types of
arguments that a decoder without a text encoder never gets, and torch._dynamo for two decorators: four fifths of the
time of `import diffusers`. A process without adapters, offload and compilation can skip them. Any other process, such
as a user's own, must import diffusers as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

UNUSED = ("accelerate", "bitsandbytes", "peft", "scipy", "torchvision")  # optional for diffusers
TYPES = "transformers"  # diffusers names its classes in annotations and as a base class
DYNAMO = "torch._dynamo"


def import_diffusers() -> None:
    """Import what generating needs of diffusers, and nothing else; no effect if diffusers is already imported."""
    if any(name in sys.modules for name in ("diffusers", TYPES, DYNAMO, *UNUSED)):
        return
    import torch

    stand_in = _Dynamo(DYNAMO)
    sys.modules[DYNAMO] = torch._dynamo = stand_in
    with _left_out():
        import kgcli.inference.denoise  # noqa: F401 (its imports are diffusers')
    stand_in.importing = False


@contextmanager
def _left_out() -> Iterator[None]:
    """Make imports of `UNUSED` fail as if not installed, and those of `TYPES` give empty classes."""
    finder = _EmptyClasses()
    sys.meta_path.insert(0, finder)
    for name in UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]  # marks a module that cannot be imported
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in (TYPES, *UNUSED)]:
            del sys.modules[name]


class _EmptyClasses(MetaPathFinder, Loader):
    """Import finder that gives a module of empty classes for every name in `TYPES`."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == TYPES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing."""


class _Empty(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, type(name, (), {}))
        return getattr(self, name)


class _Dynamo(ModuleType):
    """Stand-in for torch._dynamo with two decorators and a type; any other name imports the real module."""

    importing = True  # diffusers is
    eval_frame = SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {}))

    @staticmethod
    def disable(function: Any = None, recursive: bool = True, **options: Any) -> Any:
        """Return a function unchanged: nothing is traced."""
        return function if function is not None else lambda decorated: decorated

    @staticmethod
    def allow_in_graph(decorated: Any) -> Any:
        """Return a class or function unchanged: there is no graph."""
        return decorated

    def __getattr__(self, name: str) -> Any:
        import torch

        # `inspect` asks every module for its file, and `from torch._dynamo import ...` whether it is a package.
        if name.startswith("__") and (name != "__path__" or self.importing):
            raise AttributeError(name)
        if sys.modules.get(DYNAMO) is self:
            del sys.modules[DYNAMO], torch._dynamo
        import torch._dynamo as real

        return getattr(real, name)
