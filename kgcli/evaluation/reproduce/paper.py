"""The paper's tables as data: rows, the recipe and method of each, and the published numbers.

Recipes are named at nano size. `published` holds the paper's numbers: None is "failed", a missing row is not in
the paper.

Source: KOSMOS-G (arXiv:2310.02992), Tables 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Published = Mapping[str, float | None]  # column -> number; None where the paper has "failed"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A measure of a table."""

    name: str
    title: str
    measure: str  # in scores.json
    higher_is_better: bool = True


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: a method and the recipe it needs."""

    name: str
    title: str
    recipe: str  # of the model; for a row that needs the decoder only, any recipe with that decoder
    method: str = "kosmosg"
    published: Published = field(default_factory=dict)

    @property
    def is_model(self) -> bool:
        """True if the method is the recipe's model."""
        return self.method == "kosmosg"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper and its nano twin."""

    name: str
    title: str
    suite: str  # of the nano twin
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def pick(self, names: tuple[str, ...]) -> tuple[Row, ...]:
        """Return the rows of these names, in the table's order; all if none is named."""
        return tuple(row for row in self.rows if not names or row.name in names)


IDENTITY = (
    Column(name="dino", title="DINO", measure="dino_input"),
    Column(name="clip_i", title="CLIP-I", measure="clip_i_input"),
)
CLIP_T = Column(name="clip_t", title="CLIP-T", measure="clip_t")
PICKED = Column(name="picked", title="subject picked of 20", measure="judge_picked")
NOUN = Column(name="noun", title="right noun", measure="judge_noun")
SCENE = Column(name="scene", title="right scene", measure="judge_scene")
FID = Column(name="fid", title="FID", measure="fid_nano-clip", higher_is_better=False)

TABLE_1 = Table(
    name="table1",
    title="Table 1: subjects in new scenes",
    suite="nano-dreambench",
    columns=(*IDENTITY, CLIP_T, PICKED, NOUN, SCENE),
    rows=(
        Row(name="sd", title="Stable Diffusion, text alone", method="sd", recipe="nano/instruct"),
        Row(
            name="textual-inversion",
            title="Textual Inversion",
            method="textual-inversion",
            recipe="nano/instruct",
            published={"dino": 0.569, "clip_i": 0.780, "clip_t": 0.255},
        ),
        Row(
            name="dreambooth",
            title="DreamBooth",
            method="dreambooth",
            recipe="nano/instruct",
            published={"dino": 0.668, "clip_i": 0.803, "clip_t": 0.305},
        ),
        Row(name="copy-input", title="a copy of the input", method="copy-input", recipe="nano/instruct"),
        Row(name="aligned", title="KOSMOS-G after align", recipe="nano/align"),
        Row(
            name="kosmosg",
            title="KOSMOS-G",
            recipe="nano/instruct",
            published={"dino": 0.694, "clip_i": 0.847, "clip_t": 0.287},
        ),
    ),
    notes=(
        "The paper compares KOSMOS-G with its one input photo and the others with all photos of a subject; here "
        "every row is compared with the input photo. There, Textual Inversion and DreamBooth learn from all "
        "photos; here from the input of KOSMOS-G.",
    ),
)

TABLE_2 = Table(
    name="table2",
    title="Table 2: ways to connect the MLLM to the image decoder, generated from captions",
    suite="nano-coco",
    columns=(FID, CLIP_T, NOUN, SCENE),
    rows=(
        Row(
            name="sd",
            title="SD, its own text encoder",
            method="sd",
            recipe="ablations/aligner-24",
            published={"fid": 9.34},
        ),
        Row(
            name="e2e-without-aligner",
            title="end to end, a linear projection",
            recipe="ablations/e2e-without-aligner",
            published={"fid": None},
        ),
        Row(
            name="e2e-with-aligner",
            title="end to end, AlignerNet",
            recipe="ablations/e2e-with-aligner",
            published={"fid": 11.30},
        ),
        Row(
            name="decoder-12",
            title="CLIP supervision, decoder alone (12 layers -> 2)",
            recipe="ablations/decoder-12",
            published={"fid": None},
        ),
        Row(
            name="aligner-12",
            title="CLIP supervision, AlignerNet (12 layers -> 1 + 1)",
            recipe="ablations/aligner-12",
            published={"fid": 9.89},
        ),
        Row(
            name="aligner-24",
            title="CLIP supervision, AlignerNet (24 layers -> 2 + 2)",
            recipe="ablations/aligner-24",
            published={"fid": 9.55},
        ),
    ),
    notes=("All rows are before instruct: images are generated from captions alone.",),
)

DATA = Table(
    name="data",
    title="Data of the instruct stage: nouns dropped from captions, backgrounds kept in reference images",
    suite="nano-dreambench",
    columns=(*IDENTITY, CLIP_T, PICKED, NOUN, SCENE),
    rows=(
        Row(name="data-default", title="half dropped, half kept", recipe="ablations/data-default"),
        Row(name="drop-none", title="no noun dropped", recipe="ablations/drop-none"),
        Row(name="drop-all", title="all nouns dropped", recipe="ablations/drop-all"),
        Row(name="keep-none", title="no background kept", recipe="ablations/keep-none"),
        Row(name="keep-all", title="all backgrounds kept", recipe="ablations/keep-all"),
    ),
    notes=("The paper does not have this table; its text names both choices.",),
)

TABLES = {table.name: table for table in (TABLE_1, TABLE_2, DATA)}
