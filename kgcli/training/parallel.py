"""The processes of a training run: one alone, or several that share each batch.

`parallel: ddp` keeps all weights on every process (DistributedDataParallel); `fsdp2` shards weights, gradients and
optimizer state over them (torch's `fully_shard`). The same code runs under gloo and NCCL.

Numbers that the host needs (counts, lengths, a stop signal) travel over gloo between the hosts, so that no step waits
for a device; tensors travel over the devices' own backend.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm

from kgcli.errors import KgError
from kgcli.training.dtensors import local, whole

if TYPE_CHECKING:
    from kgcli.training.stages.base import Stage


Value = TypeVar("Value")


class OneProcess:
    """A run on one process, and the operations that `Processes` carries out over several."""

    num = 1  # processes
    rank = 0  # of this one
    shards = False  # each process holds only a part of every weight
    hosts: dist.ProcessGroup | None = None  # over gloo

    @property
    def is_main(self) -> bool:
        """Return True on the process that writes the files."""
        return self.rank == 0

    def wrap(self, stage: Stage) -> nn.Module:
        """Return the module to call in place of a stage; its gradients are means over the processes."""
        return stage

    def sync_gradients(self, last: bool) -> None:
        """Average gradients over the processes after the next forward pass if it is the `last` of its step."""

    def clip_gradients(self, parameters: list[nn.Parameter], most: float) -> Tensor:
        """Scale the gradients of a step down to a norm of at most `most`; return their norm before."""
        return clip_grad_norm_(parameters, most)

    @torch.no_grad()
    def full(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return named weights as a whole, on the main process alone; all processes call this."""
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def exchange(self, numbers: Sequence[int]) -> list[list[int]]:
        """Return the numbers of every process, by rank."""
        return [list(numbers)]

    def name(self, name: str) -> str:
        """Return the main process's name of something."""
        return name

    def share(self, value: Value) -> list[Value]:
        """Return the value of every process, by rank; any that can be pickled."""
        return [value]

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensor of every process, by rank, without gradients; all have one shape."""
        return [tensor]

    def add(self, tensor: Tensor) -> Tensor:
        """Return the sum over the processes."""
        return tensor

    def wait(self) -> None:
        """Wait for all processes."""


class Processes(OneProcess):
    """A run on several processes, started by torchrun, accelerate or SLURM, with all weights on each."""

    def __init__(self, device: torch.device) -> None:
        self.num = dist.get_world_size()
        self.rank = dist.get_rank()
        self.device = device
        self.hosts = host_group()

    def wrap(self, stage: Stage) -> nn.Module:
        devices = None if self.device.type == "cpu" else [self.device]
        self.module = DistributedDataParallel(stage, device_ids=devices, forward_sync_buffers=False)
        return self.module

    def sync_gradients(self, last: bool) -> None:
        self.module.require_backward_grad_sync = last

    def exchange(self, numbers: Sequence[int]) -> list[list[int]]:
        own = torch.tensor(list(numbers), dtype=torch.int64)
        found = [torch.empty_like(own) for _ in range(self.num)]
        with _peers():
            dist.all_gather(found, own, group=self.hosts)
        return [numbers.tolist() for numbers in found]

    def name(self, name: str) -> str:
        names = [name]
        with _peers():
            dist.broadcast_object_list(names, src=0, group=self.hosts)
        return names[0]

    def share(self, value: Value) -> list[Value]:
        found = [value] * self.num
        with _peers():
            dist.all_gather_object(found, value, group=self.hosts)
        return found

    def gather(self, tensor: Tensor) -> list[Tensor]:
        own = tensor.detach().contiguous()
        found = [torch.empty_like(own) for _ in range(self.num)]
        dist.all_gather(found, own)
        return found

    def add(self, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def wait(self) -> None:
        with _peers():
            dist.barrier(group=self.hosts)


class Sharded(Processes):
    """A run on several processes that hold a part of every weight each.

    Trained parameters become DTensors when the stage is wrapped: optimizer and running mean are made after that.
    """

    shards = True

    def wrap(self, stage: Stage) -> nn.Module:
        mesh = init_device_mesh(self.device.type, (self.num,))
        # fully_shard takes no scalars; they stay whole, and `clip_gradients` averages their gradients.
        scalars = {parameter for parameter in stage.parameters() if parameter.ndim == 0}
        idle = {parameter for part in stage.idle_parts() for parameter in part.parameters()}
        for parameter in stage.parameters():
            parameter.data = parameter.data.contiguous()  # fully_shard takes no channels-last weights
        for module in [*_layers(stage, set(stage.idle_parts())), stage]:
            fully_shard(module, mesh=mesh, ignored_params=scalars | idle)
        return stage

    def sync_gradients(self, last: bool) -> None:
        """Do nothing: gradients are sharded after every micro-batch, which keeps memory small."""

    @torch.no_grad()
    def clip_gradients(self, parameters: list[nn.Parameter], most: float) -> Tensor:
        gradients = [p.grad for p in parameters if p.grad is not None]
        sharded = [local(gradient) for gradient in gradients if isinstance(gradient, DTensor)]
        scalars = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        for gradient in scalars:
            dist.all_reduce(gradient.div_(self.num))
        squares = [self.add(get_total_norm(sharded).square()), get_total_norm(scalars).square().to(self.device)]
        norm = torch.stack(squares).sum().sqrt()
        factor = (most / (norm + 1e-6)).clamp(max=1.0)
        for gradient in (*sharded, *scalars):
            gradient.mul_(factor)
        return norm

    @torch.no_grad()
    def full(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():
            gathered = whole(tensor)
            if self.is_main:
                found[name] = gathered.detach().cpu()
        return found


def find_processes(accelerator: Accelerator, parallel: str) -> OneProcess:
    """Return the processes that a launcher has started."""
    if not dist.is_initialized():
        return OneProcess()
    return (Sharded if parallel == "fsdp2" else Processes)(accelerator.device)


@contextlib.contextmanager
def unsharded(stage: nn.Module) -> Iterator[None]:
    """Gather the weights that a stage's own methods read outside its layers, for calls other than `forward`."""
    if not isinstance(stage, FSDPModule):
        yield
        return
    stage.unshard()
    try:
        yield
    finally:
        stage.reshard()


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Turn a lost connection into one line."""
    try:
        yield
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:200]
        raise KgError(f"another process of this run has ended, its message says why ({cause})") from None


def host_group() -> dist.ProcessGroup:
    """Return a new group of all processes over gloo, which needs no device."""
    # Others wait as long as the main process encodes a pool or writes a result; a process that ends is noticed at once.
    group = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    assert isinstance(group, dist.ProcessGroup), "this process is a member"
    return group


def _layers(module: nn.Module, skipped: set[nn.Module]) -> Iterator[nn.Module]:
    """Yield the repeated layers of a network, the outermost ones: each is gathered when it is computed."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            # diffusers keeps None in the place of a layer that there is not.
            yield from (layer for layer in child if layer is not None and any(True for _ in layer.parameters()))
        elif child not in skipped:
            yield from _layers(child, skipped)
