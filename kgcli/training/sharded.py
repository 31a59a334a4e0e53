"""Checkpoints that all processes write together, by torch.distributed.checkpoint, in the background if asked.

The folder that torch writes lies in a checkpoint's folder as `sharded`; it loads on any number of processes. torch
promises nothing about it across versions: the weights lie beside it as safetensors too.
"""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata

from kgcli.errors import MissingError, OutputError
from kgcli.files import whole_folder
from kgcli.training.parallel import OneProcess, host_group

FOLDER = "sharded"
INDEX = ".metadata"  # torch's pickled index of the folder: written last
_NAMES = {  # that the index may hold, beside dtypes
    *(("torch.distributed.checkpoint.metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *(("torch.distributed.checkpoint.metadata", f"{kind}StorageMetadata") for kind in ("Tensor", "Bytes", "Chunk")),
    *(("torch.distributed.checkpoint.metadata", name) for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
    *(("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("pathlib", "PosixPath")),
    *(("torch", "Size"), ("torch.serialization", "_get_layout")),
}


class ShardedWriter:
    """Writes the tensors of all processes into one folder, which takes its name when it is complete."""

    def __init__(self, processes: OneProcess, background: bool) -> None:
        _expect_one_process()
        self.processes = processes
        self.background = background
        # Its own group: background writing must not mix with what the training thread exchanges.
        self.group = host_group() if processes.num > 1 else None
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future[Any] | None = None

    def save(
        self, folder: Path, tensors: Mapping[str, Tensor], fill: Callable[[Path], None], done: Callable[[], None]
    ) -> None:
        """Write a checkpoint's folder; all processes call this.

        Args:
            fill: writes the other files, on the main process, given the folder's temporary name
            done: called on the main process when the folder has its name
        """
        self.wait()
        with contextlib.ExitStack() as stack:
            partial = stack.enter_context(whole_folder(folder, overwrite=True)) if self.processes.is_main else Path()
            partial = Path(self.processes.name(str(partial)))
            options: dict[str, Any] = {"process_group": self.group, "no_dist": self.group is None}
            options["storage_writer"] = FileSystemWriter(partial / FOLDER)
            if self.background:
                written = state_dict_saver.async_save(dict(tensors), **options)
                assert isinstance(written, Future)
                self.pending = self.pool.submit(self._finish, stack.pop_all(), written, partial, fill, done)
                return
            with _output_errors(folder):
                state_dict_saver.save(dict(tensors), **options)
            if self.processes.is_main:
                fill(partial)
        if self.processes.is_main:
            done()
        self.processes.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint has its name.

        Raises: OutputError.
        """
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()
            self.processes.wait()

    def _finish(
        self,
        stack: contextlib.ExitStack,
        written: Future[Any],
        partial: Path,
        fill: Callable[[Path], None],
        done: Callable[[], None],
    ) -> None:
        with stack:
            with _output_errors(partial):
                written.result()
            if self.processes.is_main:
                fill(partial)
        if self.processes.is_main:
            done()


def read(folder: Path, tensors: dict[str, Tensor], processes: OneProcess) -> None:
    """Read a checkpoint's tensors in place, each process its part.

    Raises: MissingError.
    """
    _expect_one_process()
    group = processes.hosts
    try:
        state_dict_loader.load(
            tensors,
            storage_reader=FileSystemReader(folder / FOLDER),
            process_group=group,
            no_dist=group is None,
        )
    except CheckpointException as error:
        raise MissingError(f"checkpoint {folder} is damaged ({_first(error)}); resume from another one") from None


def read_shapes(folder: Path) -> dict[str, torch.Size]:
    """Return the shapes of a checkpoint's tensors.

    Raises: UnpicklingError for an index that is not torch's, of which nothing is executed.
    """
    with (folder / FOLDER / INDEX).open("rb") as file:
        index: Metadata = _IndexReader(file).load()
    return {name: entry.size for name, entry in index.state_dict_metadata.items() if hasattr(entry, "size")}


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the sizes in bytes of the files that torch wrote into a checkpoint's folder."""
    return {path.name: path.stat().st_size for path in sorted((folder / FOLDER).iterdir())}


class _IndexReader(pickle.Unpickler):
    """Reads torch's index; names of other classes, which could run code, are refused."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) in _NAMES or is_dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _expect_one_process() -> None:
    """Let torch write and read without a process group; it warns of that in each call, also in its own threads."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


@contextlib.contextmanager
def _output_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointException as error:
        raise OutputError(f"checkpoint {folder} cannot be written: {_first(error)}") from None


def _first(error: CheckpointException) -> str:
    """Return the cause of the first process that failed."""
    return str(next(iter(error.failures.values()))[0]).splitlines()[0]
