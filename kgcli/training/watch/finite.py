"""Steps whose gradient is NaN or infinite: skipped on every process alike, counted, and the end of a run that has many
in a row.

The count stays on the device, so that no step waits for it; it is read where a row of the log or a checkpoint is due.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from kgcli.errors import NotFiniteError

NUM_HALVINGS = 16  # of the scale of losses in fp16, from its start at 2^16 to 1: those steps are no fault


class FiniteSteps:
    """Optimizer steps that leave weights and moments as they are where the gradient is not finite."""

    def __init__(self, optimizer: Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Args:
        scaler: of the losses, which skips by itself where it is enabled, and then halves its scale
        """
        self.optimizer = optimizer
        self.scaler = scaler
        self.in_a_row: Tensor | int = 0  # steps skipped since the last that was taken

    def step(self, norm: Tensor) -> Tensor:
        """Take a step, or skip it; return 1.0 if it is skipped, else 0.0.

        Args:
            norm: of the gradient over all processes, so that all decide alike
        """
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm.detach()
        skipped = (~torch.isfinite(norm)).float()
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self._skips_on_device():
            self.optimizer.grad_scale, self.optimizer.found_inf = None, skipped  # type: ignore[attr-defined]
            self.optimizer.step()
            del self.optimizer.grad_scale, self.optimizer.found_inf  # type: ignore[attr-defined]
        elif not bool(skipped):
            self.optimizer.step()
        self.in_a_row = (self.in_a_row + 1) * skipped
        return skipped

    def check(self, step: int, most: int) -> None:
        """Refuse to go on after `most` skipped steps in a row; waits for the device.

        Raises: NotFiniteError.
        """
        num = int(self.in_a_row)
        if num >= most + (NUM_HALVINGS if self.scaler.is_enabled() else 0):
            raise NotFiniteError(
                f"loss or gradient was NaN or infinite in {num} steps in a row, up to step {step}; their updates were "
                "skipped, so the checkpoints hold finite weights. Lower optim.lr, raise optim.warmup_steps, use "
                "precision bf16 or fp32, or look for broken samples; the run then goes on from its last checkpoint"
            )

    def _skips_on_device(self) -> bool:
        """Return whether the optimizer's kernel skips by itself, as it does for gradient scalers."""
        parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        fused = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        return bool(fused) and not any(isinstance(parameter, DTensor) for parameter in parameters)
