"""Feature extraction in several processes: blocks of images are encoded and kept by any of them.

A block's file depends on its images and extractor alone, and each process computes as one does, so scores are the
same for any number of processes. Networks are not sent: each process opens the weights itself.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kgcli.errors import OutOfMemoryError

NUM_CACHED = 4  # extractors and alterations kept in a process
FEWEST_BLOCKS = 8  # fewer are encoded here: a process takes seconds to start


@dataclass(frozen=True)
class Job:
    """One block: pickled arguments of `encode_block` that many blocks share, and its own."""

    extractor: bytes
    alteration: bytes
    files: tuple[Path, ...]
    kept: Path


class Processes:
    """Worker processes, started when there is enough to do and stopped at the end of the context."""

    def __init__(self, num: int = 1, device: str = "cpu", fewest_blocks: int = FEWEST_BLOCKS) -> None:
        self.num = num
        self.device = device
        self.fewest_blocks = fewest_blocks
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def takes(self, num_blocks: int) -> bool:
        """Return True if so many blocks are worth processes of their own."""
        return self.num > 1 and num_blocks >= self.fewest_blocks

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Encode blocks and yield each when it is kept, in any order.

        Raises: KgError, as in the process; OutOfMemoryError if the system ended one.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                min(self.num, len(jobs)), multiprocessing.get_context("spawn"), _start, (self.device,)
            )
        waiting: dict[Future[None], Job] = {self._pool.submit(_encode, job): job for job in jobs}
        try:
            for done in as_completed(waiting):
                done.result()
                yield waiting[done]
        except BrokenProcessPool:
            raise OutOfMemoryError(
                f"one of {self.num} scoring processes was ended, most likely for lack of memory: try --workers "
                f"{max(self.num // 2, 1)}; the finished blocks are kept"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


def shared(value: Any) -> bytes:
    """Return a value as the bytes that jobs hold."""
    return pickle.dumps(value)


def default_workers(most: int = 8) -> int:
    """Return the number of CPU cores that this process may use, at most `most`."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(usable, most), 1)


def compute_exactly(device: str) -> None:
    """Set torch up so that scores do not depend on threads or TF32: sums depend on the number of threads."""
    import torch

    if device.startswith("cuda"):
        # torch defaults to TF32 convolutions, whose features would be cached as float32 like those of a CPU.
        torch.backends.cudnn.allow_tf32 = False
    else:
        torch.set_num_threads(1)


def _start(device: str) -> None:
    """Set up a worker process, which ends with its parent however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.join,), daemon=True).start()
    compute_exactly(device)


def _end_with(wait: Callable[[], None]) -> None:
    wait()
    os._exit(1)


def _encode(job: Job) -> None:
    from kgcli.evaluation.extractors.cache import encode_block

    encode_block(_opened(job.extractor), job.files, _opened(job.alteration), job.kept)


@functools.lru_cache(maxsize=NUM_CACHED)
def _opened(pickled: bytes) -> Any:
    return pickle.loads(pickled)  # made by the parent process
