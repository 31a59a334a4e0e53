"""The optimizer step of all training, with a running mean of the weights and checkpoints."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kgcli.errors import IncompatibleError
from kgcli.recipe import OptimConfig
from kgcli.training import checkpoint, sharded
from kgcli.training.dtensors import like, local
from kgcli.training.optim import lr_at, make_optimizer
from kgcli.training.parallel import OneProcess
from kgcli.training.sharded import ShardedWriter
from kgcli.training.watch.finite import FiniteSteps

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
        scaler: torch.amp.GradScaler | None = None,
        async_save: bool = False,
    ) -> None:
        """Args:
        trained: the parameters by the names that checkpoints give them
        num_steps: of the whole run, which the learning rate depends on
        ema_decay: of the running mean; None keeps none
        processes: that compute the gradients together, as means; None: this one alone
        scaler: of the losses, for fp16
        async_save: write checkpoints while training goes on; `finish` waits for the last
        """
        self.trained = dict(trained)
        self.cfg = cfg
        self.num_steps = num_steps
        self.step = 0  # steps taken
        self.processes = processes or OneProcess()
        self.scaler = scaler or torch.amp.GradScaler(enabled=False)
        self.writer = ShardedWriter(self.processes, async_save) if self.processes.shards or async_save else None
        self.optimizer = make_optimizer(self.trained.items(), cfg)
        self.finite = FiniteSteps(self.optimizer, self.scaler)
        self.ema = _make_ema(self.trained.values(), ema_decay) if ema_decay else None

    def steps(
        self, batches: Iterable[Batch], losses: Callable[[Batch], Iterable[dict[str, Tensor]]]
    ) -> Iterator[dict[str, Tensor | float]]:
        """Take one optimizer step per batch; yield its losses, their sum, the gradient's norm, the learning rate, and
        whether the step was `skipped`, as one whose gradient is not finite.

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
            self.scaler.unscale_(self.optimizer)
            norm = self.processes.clip_gradients(parameters, self.cfg.clip_norm)
            skipped = self.finite.step(norm)
            self.optimizer.zero_grad(set_to_none=True)
            if self.ema is not None:
                self.ema.step(parameters)
            self.step += 1
            loss = torch.stack(list(named.values())).sum()
            yield {**named, "loss": loss, "grad_norm": norm, "lr": rate, "skipped": skipped}

    def _backward(self, losses: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Add up the gradients of all micro-batches; return the losses of the whole batch, over all processes."""
        sums: dict[str, Tensor] = {}
        for named in losses:
            total = torch.stack(list(named.values())).sum()
            # Gradients are averaged over processes, and the parts of a loss add up.
            self.scaler.scale(total * self.processes.num if self.processes.num > 1 else total).backward()
            sums = {name: sums[name] + value.detach() if sums else value.detach() for name, value in named.items()}
        return dict(zip(sums, self.processes.add(torch.stack(list(sums.values()))).unbind(), strict=True))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the running-mean weights in place of the last ones, for previews and export."""
        if self.ema is None:
            yield
            return
        with torch.no_grad():
            weights = [local(parameter) for parameter in self.trained.values()]
            last = [weight.cpu().clone() for weight in weights]
            for weight, mean in zip(weights, self.ema.shadow_params, strict=True):
                weight.copy_(local(mean))
        try:
            yield
        finally:
            for weight, value in zip(weights, last, strict=True):
                weight.copy_(value)

    @property
    def saves_together(self) -> bool:
        """Return True if all processes write a checkpoint together: each then calls `save`."""
        return self.writer is not None

    def save(self, folder: Path, recipe: str, keep: int, more: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint of the step reached, with `more` of the caller's own state."""
        weights = self.processes.full(self.trained)
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), **(more or {})}
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self.writer is None:
            return checkpoint.save(folder, self.step, weights, state, recipe, keep)
        tensors = self._take_tensors(state)
        weights = {name: weight.to("cpu", copy=True) for name, weight in weights.items()}
        place = checkpoint.folder_of(folder, self.step)
        self.writer.save(
            place,
            tensors,
            functools.partial(checkpoint.fill, step=self.step, weights=weights, state=state, recipe=recipe),
            functools.partial(checkpoint.rotate, folder, place, keep),
        )
        return place

    def finish(self) -> None:
        """Wait for a checkpoint that is being written."""
        if self.writer is not None:
            self.writer.wait()

    def _take_tensors(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """Return all tensors of the trainer by kind and name, those of a state taken out of it."""
        tensors = {f"weights/{name}": parameter.detach() for name, parameter in self.trained.items()}
        names = self._optimizer_names()
        for index, values in state["optimizer"].pop("state").items():
            tensors |= {f"optimizer/{key}/{names[index]}": value for key, value in values.items()}
        if "ema" in state:
            state["ema"] = dict(state["ema"])
            means = state["ema"].pop("shadow_params")
            tensors |= {f"average/{name}": mean for name, mean in zip(self.trained, means, strict=True)}
        return tensors

    def _read_tensors(self, folder: Path, state: dict[str, Any]) -> dict[str, Tensor]:
        """Read the tensors of a sharded checkpoint, each process its part; put them into its state, return weights."""
        tensors = {}
        for key, shape in sharded.read_shapes(folder).items():
            parameter = self.trained[key.rpartition("/")[2]]
            tensors[key] = torch.zeros_like(parameter) if shape == parameter.shape else torch.zeros(shape)
        sharded.read(folder, tensors, self.processes)
        found: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(self.trained))}
        state["optimizer"]["state"] = found
        places = {name: index for index, name in enumerate(self._optimizer_names())}
        for key, tensor in tensors.items():
            if key.startswith("optimizer/"):
                _, part, name = key.split("/")
                found[places[name]][part] = tensor
        if "ema" in state:
            state["ema"] = {**state["ema"], "shadow_params": [tensors[f"average/{name}"] for name in self.trained]}
        return {name: tensors[f"weights/{name}"] for name in self.trained}

    def _shard_state(self, state: dict[str, Any]) -> None:
        """Shard the whole tensors of a checkpoint's state as the parameters are."""
        parameters = [self.trained[name] for name in self._optimizer_names()]
        state["optimizer"]["state"] = {
            index: {key: like(value, parameters[index]) for key, value in values.items()}
            for index, values in state["optimizer"]["state"].items()
        }
        if "ema" in state:
            pairs = zip(state["ema"]["shadow_params"], self.trained.values(), strict=True)
            state["ema"] = {**state["ema"], "shadow_params": [like(mean, parameter) for mean, parameter in pairs]}

    def _check(self, folder: Path, shapes: Mapping[str, torch.Size]) -> None:
        """Check that the weights of a checkpoint are those that train. Raises: IncompatibleError."""
        if shapes != {name: parameter.shape for name, parameter in self.trained.items()}:
            raise IncompatibleError(
                f"checkpoint {folder} holds other parameters than this recipe trains; "
                "use the recipe beside it, or start anew with --resume none"
            )

    def _optimizer_names(self) -> list[str]:
        """Return the names of the parameters in the optimizer's order."""
        names = {id(parameter): name for name, parameter in self.trained.items()}
        return [names[id(parameter)] for group in self.optimizer.param_groups for parameter in group["params"]]

    def resume(self, folder: Path) -> dict[str, Any]:
        """Resume from a checkpoint; return its state, the caller's own included.

        Raises: MissingError for a damaged one, IncompatibleError for one of other parameters.
        """
        step, weights, state = checkpoint.load(folder)
        self.restore(folder, step, weights, state)
        return state

    def restore(self, folder: Path, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Resume from the content of a checkpoint; what is sharded is read from its folder.

        Raises: IncompatibleError for one of other parameters.
        """
        self._check(folder, {name: tensor.shape for name, tensor in weights.items()})
        state = {**state, "optimizer": dict(state["optimizer"])}
        if checkpoint.is_sharded(folder):
            weights = self._read_tensors(folder, state)
        elif self.processes.shards:
            self._shard_state(state)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(like(weights[name], parameter))
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
        if "scaler" in state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
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

    parameters = list(parameters)
    # Lists at once take a copy of all weights: for many small ones, which are slow one by one.
    together = sum(p.numel() for p in parameters) < 2**27 and not any(isinstance(p, DTensor) for p in parameters)
    return EMAModel(parameters, decay=decay, use_ema_warmup=True, power=0.75, foreach=together)
