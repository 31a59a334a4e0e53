"""A method that learns each subject by gradient steps: its folders, training loop and generation.

The training stages read samples by number and export models; a subject is a few image files and ends as one small
file. Both take their steps in `kgcli.training.trainer`: all that is random in a step comes from (subject, step), and a
resumed run repeats an uninterrupted one bit for bit on a CPU.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor, nn

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.decoder import TextDecoder, find_decoder, read_dtype
from kgcli.evaluation.baselines.settings import check_range, read_settings
from kgcli.evaluation.baselines.words import reference_names
from kgcli.evaluation.plan import Item
from kgcli.files import sha256, write_whole
from kgcli.model.randomness import StepRandom
from kgcli.recipe import OptimConfig
from kgcli.runtime import memory_errors
from kgcli.training import checkpoint
from kgcli.training.trainer import Trainer

LEARNT = "learnt.json"  # in a subject's folder: the settings and images it was learnt from
KEEP = 1  # checkpoints


class PerSubject:
    """Base of methods that learn. Subclasses define what trains, the loss, and the format of the result."""

    name: str = ""
    # Scale of the decoder -> default settings.
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, options: MethodOptions) -> None:
        if options.model is not None:
            raise UsageError(f"--method {self.name} has no --model; --decoder is what it trains")
        read_dtype(options.dtype)
        self.options = options
        self.folder = find_decoder(options.decoder, options.offline)
        given = dict(options.extra)
        self.settings = read_settings(self.name, self.defaults_for(given), options.extra)
        check_range(self.name, self.settings, {"steps": 1, "batch": 1, "lr": 0.0, "save_every": 1})
        if self.settings["references"] not in ("input", "all"):
            raise UsageError(f"--method {self.name}: references is {self.settings['references']}; write input or all")
        self.folder.sampling(options)
        self._decoder: TextDecoder | None = None
        self._held: Path | None = None  # the subject whose parameters are in place

    def defaults_for(self, given: Mapping[str, str]) -> Mapping[str, Any]:
        """Return the defaults, given the other settings."""
        return self.defaults[self.folder.scale]

    def facts(self) -> dict[str, Any]:
        """Return name, settings, sampling, and the hash of the decoder's weights."""
        return {
            "name": self.name,
            "decoder_sha256": self.folder.sha256,
            "dtype": "bfloat16" if self.options.dtype == "bfloat16" else "float32",
            **self.folder.sampling_facts(self.options),
            # The checkpoint interval does not change the result.
            "settings": {name: value for name, value in sorted(self.settings.items()) if name != "save_every"},
        }

    @property
    def decoder(self) -> TextDecoder:
        """The decoder, loaded on first use."""
        if self._decoder is None:
            self._decoder = TextDecoder(self.folder, self.options)
            self.attach(self._decoder)
            self.initial = {name: p.detach().cpu().clone() for name, p in self.trained().items()}
        return self._decoder

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """Learn a subject, resuming an interrupted one; return at once if it is learnt. Safe across processes.

        Raises: UsageError if the folder holds the result of other settings or images.
        """
        names = reference_names(items, data, every=self.settings["references"] == "all")
        made_of = {
            "subject": subject,
            "noun": items[0].class_noun,
            "pictures": {name: sha256(data / name) for name in names},
            "method": self.facts(),
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = folder.with_name(f".{folder.name}.partial")
        with FileLock(folder.with_name(f".{folder.name}.lock")), memory_errors():
            if not folder.exists():
                self._learn(made_of, [data / name for name in names], folder, work)
            shutil.rmtree(work, ignore_errors=True)
            if _read(folder) != made_of:
                raise UsageError(f"{folder} holds the result of other settings or images; use another run folder")

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """Return an image per item, using the subject learnt in `folder`."""
        decoder = self.decoder
        if self._held != folder:
            if not (folder / LEARNT).is_file():
                raise MissingError(f"{folder} does not hold a learnt subject; prepare it first")
            self._held = None
            self.put(self.read(folder))
            self._held = folder
        with memory_errors():
            return decoder.generate([self.words(item) for item in items], [item.seed for item in items])

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Set the trained parameters."""
        with torch.no_grad():
            for name, parameter in self.trained().items():
                parameter.copy_(values[name])

    def _learn(self, made_of: dict[str, Any], images: list[Path], folder: Path, work: Path) -> None:
        decoder, settings = self.decoder, self.settings
        self._held = None
        self.put(self.initial)
        seed = int(hashlib.sha256(f"{settings['seed']}/{made_of['subject']}".encode()).hexdigest()[:8], 16)
        loss = self.begin(made_of["noun"] or made_of["subject"], images, folder.parent)
        trained = self.trained()
        for parameter in trained.values():
            parameter.requires_grad_(True)
        try:
            with decoder.computing():
                train_parameters(work, trained, loss, settings, seed=seed, recipe=_dump(made_of))
        finally:
            for parameter in trained.values():
                parameter.requires_grad_(False)
        result = work / "result"
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir()
        self.write(result, made_of["subject"])
        write_whole(result / LEARNT, _dump(made_of).encode())
        result.rename(folder)

    # Subclasses implement:

    def attach(self, decoder: TextDecoder) -> None:
        """Add the trainable parameters to the decoder, once."""
        raise NotImplementedError

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that train, by name."""
        raise NotImplementedError

    def begin(self, noun: str, images: list[Path], shared: Path) -> Callable[[StepRandom], Tensor]:
        """Set up one subject; return the loss of a step. `shared` is a folder of all subjects."""
        raise NotImplementedError

    def write(self, folder: Path, subject: str) -> None:
        """Write the result in a format that diffusers reads."""
        raise NotImplementedError

    def read(self, folder: Path) -> dict[str, Tensor]:
        """Load what `write` wrote, by the names of `trained`."""
        raise NotImplementedError

    def words(self, item: Item) -> str:
        """Return the text to encode for an item."""
        raise NotImplementedError


def train_parameters(
    work: Path,
    trained: dict[str, nn.Parameter],
    loss: Callable[[StepRandom], Tensor],
    settings: Mapping[str, Any],
    *,
    seed: int,
    recipe: str,
) -> None:
    """Take the remaining steps, saving every `save_every`; checkpoints of other recipes are ignored."""
    cfg = OptimConfig(
        lr=settings["lr"],
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.01,
        clip_norm=1.0,
        schedule="constant",
        warmup_steps=0,
    )
    trainer = Trainer(trained, cfg, settings["steps"])
    for found in reversed(checkpoint.list_steps(work)):
        if (found / "recipe.yaml").read_text("utf-8") == recipe:
            trainer.resume(found)
            break
    num = settings["batch"]
    # (seed, step, sample number) as in `kgcli.training.loop`: nothing else is random.
    randoms = (
        StepRandom(seed, step, range(step * num, (step + 1) * num)) for step in range(trainer.step, settings["steps"])
    )
    for _ in trainer.steps(randoms, lambda random: [{"loss": loss(random)}]):
        if trainer.step % settings["save_every"] == 0 or trainer.step == settings["steps"]:
            trainer.save(work, recipe, KEEP)


def _dump(made_of: dict[str, Any]) -> str:
    return json.dumps(made_of, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _read(folder: Path) -> Any:
    try:
        return json.loads((folder / LEARNT).read_text("utf-8"))
    except (OSError, ValueError):
        return None
