"""What adapters of the nano decoder do: whether a ControlNet's pictures follow their maps, and a LoRA's its style.

Asked with pictures of individuals no stage has seen (the cases of `kg eval nano` whose noun is not named). With and
without an adapter the prompt, the noise and all settings are the same.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from kgcli.data.images import Picture
from kgcli.evaluation.benchmarks.nano_skills import SHIPPED_JUDGES
from kgcli.evaluation.benchmarks.skills import SIZE, Case, draw_cases
from kgcli.evaluation.benchmarks.skills_methods import ModelPainter, paint_other, paint_truth, through_vae
from kgcli.evaluation.benchmarks.skills_scoring import Scorer, Scores
from kgcli.evaluation.metrics.exact import StyleScale, edge_f1
from kgcli.evaluation.metrics.intervals import Estimate, estimate
from kgcli.evaluation.report.skills import Report, Row
from kgcli.inference.adapters import Adapters, Control, Lora, Source, find_controlnet, read_lora
from kgcli.inference.control_maps import make_map
from kgcli.inference.output import write_picture
from kgcli.model.nano_recognisers import Judges
from kgcli.world.scenes import stylize
from kgcli.world.tables import ADAPTER_STYLES

if TYPE_CHECKING:
    from kgcli.engine import Model

PROTOCOL = "kgcli-adapters-1"  # a new number whenever a figure would mean something else
DEFAULT_NUM = 96
SHIPPED_LORA = "nano/comic"
STYLE = ADAPTER_STYLES[0]
NUM_FITTED = 128  # true renders that the scale of the style is fitted to
FITTED_SEED = 1 << 20  # of those, apart from the seeds of cases
NUM_SHOWN = 16  # cases in a grid
SUBJECT = "subject"  # the task of the nano suite that the cases are of
SECTIONS = {"controlnet": "ControlNet, canny", "lora": f"LoRA, {STYLE}"}
MEASURES = {
    "edges": "edges followed, F1",
    "style": "painted in the style",
    "degree": "degree of the style",
    "picked": "subject picked, of 20",
    "noun": "right noun, of 58",
    "scene": "right scene",
}
COLUMNS = ("with", "without", "true", "vae", "floor")
MEASURED = ("with", "without")  # shown with their intervals

Pictures = dict[str, list[Image.Image]]  # column -> a picture for each case


class AdapterReport(Report):
    """The figures of both adapters as one table."""

    def __str__(self) -> str:
        cells = {(row.task, row.measure, row.painter): row.estimate for row in self.rows}
        lines = [f"{'percent [95 % interval]':<26}" + "".join(f"{name:>{_width(name)}}" for name in COLUMNS)]
        for section, title in SECTIONS.items():
            lines.append(f"{title} ({self.facts['num']})")
            for measure, words in MEASURES.items():
                shown = [(name, cells.get((section, measure, name))) for name in COLUMNS]
                if any(value for _, value in shown):
                    lines.append(f"  {words:<24}" + "".join(_cell(value, name) for name, value in shown))
        notes = (
            "true: rendered as asked, for the LoRA in its style (ceiling). vae: that, through the VAE. floor: true "
            "renders of another individual (ControlNet), or without the style (LoRA)."
        )
        model = self.facts["model"]
        facts = f"{PROTOCOL}, seed {self.facts['seed']}, {self.facts['seconds']} s, model {model['name']}"
        return "\n".join([*lines, "", notes, facts])


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
    """Measure a ControlNet and a LoRA on a model, the shipped ones where none are given.

    Raises: MissingError, IncompatibleError, UsageError.
    """
    start = time.monotonic()
    source = find_controlnet("canny", controlnet, model.folder)
    style = read_lora(lora or SHIPPED_LORA)
    cases = draw_cases(SUBJECT, num, seed)
    scorer = Scorer(cases, Judges.load(judges or SHIPPED_JUDGES))
    _say(f"{len(cases)} pictures without an adapter, then with {source.name}, then with {style.source.name}")
    without = ModelPainter(model)(cases)
    drawn = {
        "controlnet": {"without": without, **draw_controlled(model, cases, source)},
        "lora": {"without": without, **draw_styled(model, cases, style)},
    }
    _say("all are drawn; judging")
    rows = []
    for section, measure in (("controlnet", measure_edges), ("lora", measure_style)):
        for column, pictures in drawn[section].items():
            rows += _summarise(section, column, scorer(pictures), measure(cases, pictures))
    if grid is not None:
        draw_grid(cases, drawn, grid)
    facts = {
        "protocol": PROTOCOL,
        "seed": seed,
        "num": len(cases),
        "model": {"name": model.folder.name, "sha256": model.folder.sha256, "decoder": model.folder.decoder_sha256},
        "controlnet": {"name": source.name, "sha256": source.sha256},
        "lora": {"name": style.source.name, "sha256": style.source.sha256},
        "seconds": round(time.monotonic() - start, 1),
    }
    return AdapterReport(facts=facts, rows=rows)


def draw_controlled(model: Model, cases: Sequence[Case], source: Source) -> Pictures:
    """The cases along the edges of their true renders, and beside them what those are compared with."""
    truth = paint_truth(cases)
    steered = []
    for case, picture in zip(cases, truth, strict=True):
        control = Control(kind="canny", source=source, picture=_as_picture(picture))
        with model.attachments.on(Adapters(controls=(control,)), (SIZE, SIZE)):
            steered += ModelPainter(model)([case])
    return {"with": steered, "true": truth, "vae": through_vae(model, truth), "floor": paint_other(cases)}


def draw_styled(model: Model, cases: Sequence[Case], lora: Lora) -> Pictures:
    """The cases with the LoRA on the decoder, and beside them what those are compared with."""
    with model.attachments.on(Adapters(loras=(lora,)), (SIZE, SIZE)):
        painted = ModelPainter(model)(cases)
    with model.attachments.on(Adapters(), (SIZE, SIZE)):
        pass  # takes the LoRA off again
    plain = paint_truth(cases)
    truth = [stylize(picture, STYLE) for picture in plain]
    return {"with": painted, "true": truth, "vae": through_vae(model, truth), "floor": plain}


def measure_edges(cases: Sequence[Case], pictures: Sequence[Image.Image]) -> list[Scores]:
    """How well each picture's edges are those of the case's map."""
    maps = [make_map("canny", picture) for picture in paint_truth(cases)]
    return [{"edges": edge_f1(picture, wanted)} for picture, wanted in zip(pictures, maps, strict=True)]


def measure_style(cases: Sequence[Case], pictures: Sequence[Image.Image]) -> list[Scores]:
    """Whether each picture is nearer to the true render in the style than to the one without it, and by how much."""
    degrees = _style_scale()(pictures, paint_truth(cases))
    return [{"style": float(degree > 0.5), "degree": degree} for degree in degrees]


def draw_grid(cases: Sequence[Case], drawn: dict[str, Pictures], path: Path) -> None:
    """Write rows of pictures: prompt, map, with and without ControlNet; with LoRA, and true render in the style."""
    shown = cases[:NUM_SHOWN]
    rows = [
        [case.images[0] for case in shown],
        [make_map("canny", picture) for picture in drawn["controlnet"]["true"][:NUM_SHOWN]],
        *(drawn["controlnet"][column][:NUM_SHOWN] for column in MEASURED),
        *(drawn["lora"][column][:NUM_SHOWN] for column in ("with", "true")),
    ]
    sheet = np.concatenate([np.concatenate([np.asarray(p.convert("RGB")) for p in row], axis=1) for row in rows])
    image = Image.fromarray(sheet)
    write_picture(path, image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST), None)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@functools.cache
def _style_scale() -> StyleScale:
    return StyleScale(paint_truth(draw_cases(SUBJECT, NUM_FITTED, FITTED_SEED)), STYLE)


def _summarise(section: str, column: str, judged: Sequence[Scores], measured: Sequence[Scores]) -> list[Row]:
    merged = [{**one, **other} for one, other in zip(judged, measured, strict=True)]
    names = [name for name in MEASURES if name in merged[0]]
    return [Row(section, "all", name, column, estimate([scores[name] for scores in merged])) for name in names]


def _as_picture(image: Image.Image) -> Picture:
    return Picture(Path("render.png"), "render.png", hashlib.sha256(image.tobytes()).hexdigest(), image)


def _width(column: str) -> int:
    return 21 if column in MEASURED else 7


def _cell(value: Estimate | None, column: str) -> str:
    if value is None:
        return " " * _width(column)
    shown = f"{100 * value.value:.1f}"
    if column in MEASURED:
        shown += f" [{100 * value.low:.1f}, {100 * value.high:.1f}]"
    return f"{shown:>{_width(column)}}"
