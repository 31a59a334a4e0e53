"""`kg eval adapters`: how well a ControlNet's images follow their maps, and a LoRA's images its style.

Prompts are about instances that no stage has seen (the cases of `kg eval nano` whose noun is not named). Prompt, noise
and settings are the same with and without an adapter.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from kgcli.data.images import ImageFile
from kgcli.evaluation.baselines.base import Method, MethodOptions
from kgcli.evaluation.baselines.kosmosg import KosmosG
from kgcli.evaluation.baselines.world import Other, Reconstruction, Truth
from kgcli.evaluation.benchmarks.nano_skills import (
    DEFAULT_NUM,
    answer,
    load_judges,
    model_fingerprint,
    note,
    recognition_of,
)
from kgcli.evaluation.benchmarks.nano_world import check_model
from kgcli.evaluation.benchmarks.skills import TASKS, case_of, draw_cases, skills_plan, write_inputs
from kgcli.evaluation.metrics.exact import StyleScale, edge_f1
from kgcli.evaluation.metrics.intervals import estimate
from kgcli.evaluation.metrics.recognition import Recognition
from kgcli.evaluation.plan import Item, Plan
from kgcli.evaluation.report.skills import Layout, Report, Row
from kgcli.evaluation.scores import ALL
from kgcli.inference.adapters.control_maps import make_map
from kgcli.inference.adapters.named import Adapters, Control, Lora, Source, find_controlnet, read_lora
from kgcli.world.rendering import render, stylize
from kgcli.world.tables import ADAPTER_STYLES

if TYPE_CHECKING:
    from kgcli.inference.model import Model

PROTOCOL = "kgcli-adapters-2"  # raised whenever a change makes scores incomparable
SHIPPED_LORA = "nano/comic"
STYLE = ADAPTER_STYLES[0]
NUM_FITTED = 128  # true renders that the scale of the style is fitted to
FITTED_SEED = 1 << 20  # disjoint from the seeds of cases
NUM_SHOWN = 16  # cases in a grid
SUBJECT = "subject"  # task of the nano suite that provides the cases
COLUMNS = ("with", "without", "true", "vae", "floor")
LAYOUT = Layout(
    titles={"controlnet": "ControlNet, canny", "lora": f"LoRA, {STYLE}"},
    measures={
        "edges": "edges followed, F1",
        "style": "image in the style",
        "degree": "degree of the style",
        "picked": "subject picked, of 20",
        "noun": "right noun, of 58",
        "scene": "right scene",
    },
    columns=COLUMNS,
    measured=("with", "without"),
    bound=".1f",
    notes=(
        "true: true renders, for the LoRA in its style (ceiling). vae: their VAE reconstruction. floor: true "
        "renders of another instance (ControlNet), or without the style (LoRA).",
    ),
)

Images = list[Image.Image]
AdapterReport = functools.partial(Report, layout=LAYOUT)


def evaluate(
    model: Model,
    *,
    num: int = DEFAULT_NUM,
    seed: int = 0,
    controlnet: str | None = None,
    lora: str | None = None,
    judges: Path | None = None,
    grid: Path | None = None,
) -> Report:
    """Measure a ControlNet and a LoRA on a model (default: the shipped adapters).

    Raises: MissingError, IncompatibleError.
    """
    start = time.monotonic()
    check_model(model.folder)
    source = find_controlnet("canny", controlnet, model.folder)
    style = read_lora(lora or SHIPPED_LORA)
    recognisers = load_judges(judges)
    with tempfile.TemporaryDirectory() as work:
        plan = skills_plan(Path(work), num, seed, {}, (SUBJECT,))
        write_inputs(plan)
        note(f"{len(plan.items)} images without an adapter, then with {source.name}, then with {style.source.name}")
        answers = answer_all(plan, columns_of(model, source, style))
    note("scoring")
    cases = [case_of(item) for item in plan.items]
    recognise = recognition_of(recognisers, cases)
    rows = [row for section, found in answers.items() for row in _rows(section, found, plan, recognise)]
    if grid is not None:
        _write_grid(plan, answers, grid)
    facts = {
        "protocol": PROTOCOL,
        "seed": seed,
        "num": len(cases),
        "model": model_fingerprint(model),
        "controlnet": {"name": source.name, "sha256": source.sha256},
        "lora": {"name": style.source.name, "sha256": style.source.sha256},
        "seconds": round(time.monotonic() - start, 1),
    }
    return Report(facts=facts, rows=rows, layout=LAYOUT)


def columns_of(model: Model, source: Source, style: Lora) -> dict[str, dict[str, Method]]:
    """Return the methods to measure, by adapter and column."""
    options = MethodOptions()
    truth, styled, plain = Truth(options), StyledTruth(options), KosmosG.of(model)
    steered, with_lora = Steered.of(model), Styled.of(model)
    steered.source, with_lora.lora = source, style
    return {
        "controlnet": {
            "without": plain,
            "with": steered,
            "true": truth,
            "vae": Reconstruction.of(truth, model),
            "floor": Other(options),
        },
        "lora": {
            "without": plain,
            "with": with_lora,
            "true": styled,
            "vae": Reconstruction.of(styled, model),
            "floor": truth,
        },
    }


def answer_all(plan: Plan, columns: Mapping[str, Mapping[str, Method]]) -> dict[str, dict[str, Images]]:
    """Return the images of every method; a method in two columns generates once."""
    known: dict[Method, Images] = {}
    for method in (one for of in columns.values() for one in of.values()):
        if method not in known:
            known[method] = answer(method, plan, plan.items)
    return {section: {name: known[method] for name, method in of.items()} for section, of in columns.items()}


class Steered(KosmosG):
    """A model with a ControlNet on the edges of the true renders."""

    source: Source

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> Images:
        """Generate images one by one, each with its own map."""
        images = []
        for item in items:
            case = case_of(item)
            truth = render(case.spec).image
            shown = ImageFile(Path("render.png"), "render.png", hashlib.sha256(truth.tobytes()).hexdigest(), truth)
            control = Control(kind="canny", source=self.source, image=shown)
            with self.loaded().attachments.on(Adapters(controls=(control,)), self.sampling.size):
                images += super().draw([item], data, folder)
        return images


class Styled(KosmosG):
    """A model with a LoRA on its decoder."""

    lora: Lora

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> Images:
        """Generate one batch, then remove the LoRA."""
        attachments = self.loaded().attachments
        with attachments.on(Adapters(loras=(self.lora,)), self.sampling.size):
            images = super().draw(items, data, folder)
        with attachments.on(Adapters(), self.sampling.size):
            return images


class StyledTruth(Truth):
    """True renders in the style."""

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> Images:
        """Return restyled renders."""
        return [stylize(image, STYLE) for image in super().draw(items, data, folder)]


def measure_edges(truth: Sequence[Image.Image], images: Sequence[Image.Image]) -> list[dict[str, float]]:
    """Return the F1 of each image's edges against its map."""
    maps = [make_map("canny", image) for image in truth]
    return [{"edges": edge_f1(image, wanted)} for image, wanted in zip(images, maps, strict=True)]


def measure_style(truth: Sequence[Image.Image], images: Sequence[Image.Image]) -> list[dict[str, float]]:
    """Return each image's degree of the style (0 as the plain true render, 1 as the styled one) and if it is > 0.5."""
    degrees = _style_scale()(images, truth)
    return [{"style": float(degree > 0.5), "degree": degree} for degree in degrees]


@functools.cache
def _style_scale() -> StyleScale:
    plain = [render(case.spec).image for case in draw_cases(SUBJECT, NUM_FITTED, FITTED_SEED)]
    return StyleScale(plain, STYLE)


def _rows(section: str, found: Mapping[str, Images], plan: Plan, recognise: Recognition) -> list[Row]:
    cases = [case_of(item) for item in plan.items]
    truth = [render(case.spec).image for case in cases]
    own = {"controlnet": measure_edges, "lora": measure_style}[section]
    rows = []
    for column, images in found.items():
        seen = zip(cases, recognise(images), own(truth, images), strict=True)
        values = [{**TASKS[SUBJECT].score(case, one), **measured} for case, one, measured in seen]
        names = [name for name in LAYOUT.measures if name in values[0]]
        rows += [Row(section, ALL, name, column, estimate([one[name] for one in values])) for name in names]
    return rows


def _write_grid(plan: Plan, answers: Mapping[str, Mapping[str, Images]], path: Path) -> None:
    """Write rows of images: prompt, map, with and without ControlNet; with LoRA, true render in the style."""
    from kgcli.evaluation.report.grid import write_rows

    controlled, styled = answers["controlnet"], answers["lora"]
    rows = [
        [case_of(item).images[0] for item in plan.items],
        [make_map("canny", image) for image in controlled["true"]],
        *(controlled[column] for column in LAYOUT.measured),
        *(styled[column] for column in ("with", "true")),
    ]
    write_rows([row[:NUM_SHOWN] for row in rows], path)
