"""The processes of a training run: one alone, or several that share each batch by DistributedDataParallel.

Numbers that the host needs (counts, lengths, a stop signal) travel over gloo between the hosts, so that no step waits
for a device; tensors travel over the devices' own backend.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class OneProcess:
    """A run on one process, and the operations that `Processes` carries out over several."""

    num = 1  # processes
    rank = 0  # of this one

    @property
    def is_main(self) -> bool:
        """Return True on the process that writes the files."""
        return self.rank == 0

    def wrap(self, stage: nn.Module) -> nn.Module:
        """Return the module to call in place of a stage; its gradients are means over the processes."""
        return stage

    def sync_gradients(self, last: bool) -> None:
        """Average gradients over the processes after the next forward pass if it is the `last` of its step."""

    def exchange(self, numbers: Sequence[int]) -> list[list[int]]:
        """Return the numbers of every process, by rank."""
        return [list(numbers)]

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensor of every process, by rank, without gradients; all have one shape."""
        return [tensor]

    def add(self, tensor: Tensor) -> Tensor:
        """Return the sum over the processes."""
        return tensor

    def wait(self) -> None:
        """Wait for all processes."""


class Processes(OneProcess):
    """A run on several processes, started by torchrun, accelerate or SLURM."""

    def __init__(self, device: torch.device) -> None:
        self.num = dist.get_world_size()
        self.rank = dist.get_rank()
        self.device = device
        self.hosts = _host_group()

    def wrap(self, stage: nn.Module) -> nn.Module:
        devices = None if self.device.type == "cpu" else [self.device]
        self.module = DistributedDataParallel(stage, device_ids=devices, forward_sync_buffers=False)
        return self.module

    def sync_gradients(self, last: bool) -> None:
        self.module.require_backward_grad_sync = last

    def exchange(self, numbers: Sequence[int]) -> list[list[int]]:
        own = torch.tensor(list(numbers), dtype=torch.int64)
        found = [torch.empty_like(own) for _ in range(self.num)]
        dist.all_gather(found, own, group=self.hosts)
        return [numbers.tolist() for numbers in found]

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
        dist.barrier(group=self.hosts)


def find_processes(accelerator: Accelerator) -> OneProcess:
    """Return the processes that a launcher has started."""
    return Processes(accelerator.device) if accelerator.num_processes > 1 else OneProcess()


def _host_group() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup), "this process is a member"
    return group
