"""`kg eval nano FOLDER`: a text-to-image base alone, before there is a language model for it.

FOLDER is a diffusers folder, as `kg base unet` exports it. Prompts of one and of two subjects name everything
that is scored: nouns, scene and style. Baselines are those of `nano_skills`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kgcli.evaluation.baselines.base import Method, MethodOptions
from kgcli.evaluation.baselines.decoder import TextDecoder, find_decoder
from kgcli.evaluation.baselines.world import Other, Reconstruction, Truth
from kgcli.evaluation.benchmarks.nano_skills import DEFAULT_NUM, Answers, in_turns, load_judges, measure
from kgcli.evaluation.benchmarks.nano_world import SAMPLING, check_decoder
from kgcli.evaluation.benchmarks.skills import BASE_TASKS, skills_plan
from kgcli.evaluation.plan import Item
from kgcli.evaluation.report.skills import Report
from kgcli.runtime import memory_errors

PROTOCOL = "kgcli-nano-base-2"  # raised whenever a change makes scores incomparable


def evaluate(
    folder: Path,
    *,
    num: int = DEFAULT_NUM,
    seed: int = 0,
    device: str = "auto",
    judges: Path | None = None,
    grid: Path | None = None,
) -> Report:
    """Measure a diffusers folder from text alone.

    Args:
        num: prompts of one subject, and as many of two
        judges: folder of recognisers, instead of those that ship
        grid: file for prompts, true renders and outputs

    Raises: MissingError, IncompatibleError.
    """
    start, found = time.monotonic(), find_decoder(str(folder), offline=True)
    check_decoder(found.path)
    recognisers = load_judges(judges)
    options = MethodOptions(decoder=str(folder), device=device, sampling=SAMPLING, offline=True)
    base, truth = TextToImage(TextDecoder(found, options)), Truth(options)
    methods: dict[str, Method] = {
        "base": base,
        "true": truth,
        "vae": Reconstruction(truth, base.decoder.diffusion, found.sha256),
        "other": Other(options),
    }
    answers: Answers = {}
    with tempfile.TemporaryDirectory() as work, memory_errors():
        plan = skills_plan(Path(work), num, seed, {}, BASE_TASKS)
        rows = measure({name: (one, BASE_TASKS) for name, one in methods.items()}, plan, recognisers, keep=answers)
    if grid is not None:
        from kgcli.evaluation.report.grid import write_cases

        write_cases(in_turns(answers, BASE_TASKS), grid)
    facts = {
        "protocol": PROTOCOL,
        "seed": seed,
        "num": num,
        "model": {"name": folder.name, "sha256": found.sha256},
        "judges": recognisers.sha256(),
        "device": str(base.decoder.device),
        "generation": base.decoder.sampling.model_dump(),
        "seconds": round(time.monotonic() - start, 1),
    }
    return Report(facts=facts, rows=rows)


class TextToImage:
    """A decoder with its own text encoder as a method: generates from the scored text."""

    name = "base"

    def __init__(self, decoder: TextDecoder) -> None:
        self.decoder = decoder

    def facts(self) -> dict[str, Any]:
        """Return its name."""
        return {"name": self.name}

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """Do nothing: this method does not learn."""

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """Generate one batch."""
        return self.decoder.generate([item.scored_text for item in items], [item.seed for item in items])
