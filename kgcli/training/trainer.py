"""The optimizer step of all training, with a running mean of the weights and checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kgcli.errors import IncompatibleError
from kgcli.recipe import OptimConfig
from kgcli.training import checkpoint
from kgcli.training.optim import lr_at, make_optimizer
from kgcli.training.parallel import OneProcess

Batch = TypeVar("Batch")


class Trainer:
    """Named parameters with their optimizer, running mean and step count.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> trainer = Trainer(dict(layer.named_parameters()), OptimConfig(lr=0.1, warmup_steps=0), num_steps=3)
        >>> batches = (torch.ones(4, 2) for _ in range(3))
        >>> rows = list(trainer.steps(batches, lambda batch: [{"square": layer(batch).square().mean()}]))
        >>> trainer.step, bool(rows[2]["square"] < rows[0]["square"])
        (3, True)
    """

    def __init__(
        self,
        trained: Mapping[str, nn.Parameter],
        cfg: OptimConfig,
        num_steps: int,
        *,
        ema_decay: float | None = None,
        processes: OneProcess | None = None,
    ) -> None:
        """Args:
        trained: the parameters by the names that checkpoints give them
        num_steps: of the whole run, which the learning rate depends on
        ema_decay: of the running mean; None keeps none
        processes: that compute the gradients together, as means; None: this one alone
        """
        self.trained = dict(trained)
        self.cfg = cfg
        self.num_steps = num_steps
        self.step = 0  # steps taken
        self.processes = processes or OneProcess()
        self.optimizer = make_optimizer(self.trained.items(), cfg)
        self.ema = _make_ema(self.trained.values(), ema_decay) if ema_decay else None

    def steps(
        self, batches: Iterable[Batch], losses: Callable[[Batch], Iterable[dict[str, Tensor]]]
    ) -> Iterator[dict[str, Tensor | float]]:
        """Take one optimizer step per batch; yield its losses, their sum, the gradient's norm and the learning rate.

        Nothing here waits for the device: the values are tensors on it.

        Args:
            losses: the named losses of each micro-batch; those of all micro-batches and processes are added up
        """
        parameters = list(self.trained.values())
        for batch in batches:
            rate = lr_at(self.step, self.num_steps, self.cfg)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("lr_ratio", 1.0)
            named = self._backward(losses(batch))
            norm = nn.utils.clip_grad_norm_(parameters, self.cfg.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.ema is not None:
                self.ema.step(parameters)
            self.step += 1
            yield {**named, "loss": torch.stack(list(named.values())).sum(), "grad_norm": norm, "lr": rate}

    def _backward(self, losses: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Add up the gradients of all micro-batches; return the losses of the whole batch, over all processes."""
        sums: dict[str, Tensor] = {}
        for named in losses:
            total = torch.stack(list(named.values())).sum()
            (total * self.processes.num if self.processes.num > 1 else total).backward()
            sums = {name: sums[name] + value.detach() if sums else value.detach() for name, value in named.items()}
        return dict(zip(sums, self.processes.add(torch.stack(list(sums.values()))).unbind(), strict=True))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the running-mean weights in place of the last ones, for previews and export."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.trained.values())
        self.ema.copy_to(self.trained.values())
        try:
            yield
        finally:
            self.ema.restore(self.trained.values())

    def save(self, folder: Path, recipe: str, keep: int, more: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint of the step reached, with `more` of the caller's own state."""
        weights = {name: parameter.detach() for name, parameter in self.trained.items()}
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), **(more or {})}
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return checkpoint.save(folder, self.step, weights, state, recipe, keep)

    def resume(self, folder: Path) -> dict[str, Any]:
        """Resume from a checkpoint; return its state, the caller's own included.

        Raises: MissingError for a damaged one, IncompatibleError for one of other parameters.
        """
        step, weights, state = checkpoint.load(folder)
        self.restore(folder, step, weights, state)
        return state

    def restore(self, folder: Path, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Resume from the content of a checkpoint; its folder is for messages.

        Raises: IncompatibleError for one of other parameters.
        """
        shapes = {name: parameter.shape for name, parameter in self.trained.items()}
        if {name: tensor.shape for name, tensor in weights.items()} != shapes:
            raise IncompatibleError(
                f"checkpoint {folder} holds other parameters than this recipe trains; "
                "use the recipe beside it, or start anew with --resume none"
            )
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])
        # The rates and decays of the recipe at hand, not those the checkpoint was written with.
        own = [
            {name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups
        ]
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, TypeError, ValueError) as error:
            raise IncompatibleError(f"the optimizer of checkpoint {folder} does not fit this recipe: {error}") from None
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        if self.ema is not None:
            decay = self.ema.decay
            if "ema" in state:
                self.ema.load_state_dict(state["ema"])
                self.ema.decay = decay
            else:  # the run had none before: the mean starts from the weights reached
                self.ema = _make_ema(self.trained.values(), decay)
        self.step = step


def _make_ema(parameters: Iterable[nn.Parameter], decay: float) -> Any:
    from diffusers.training_utils import EMAModel

    return EMAModel(parameters, decay=decay, use_ema_warmup=True, power=0.75)
