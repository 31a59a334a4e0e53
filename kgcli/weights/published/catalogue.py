"""The catalogue of published weights that kgcli can use: location, contents and licence."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kgcli.errors import MissingError

VARIABLE = "KG_MODELS"  # overrides the default folder
CONFIG_NAME = "config.json"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One repository's copy of published weights."""

    repository: str
    file: str
    extras: tuple[str, ...] = ()  # further files of the repository that a conversion reads
    size: int  # bytes, to three digits
    sha256: str
    pinned: bool  # the hash is this repository's own, not that of a duplicate
    official: bool
    licence: str
    form: str  # the naming scheme of the weights


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model by name, and its sources in the order to try."""

    name: str
    stage: str
    gives: str
    sources: tuple[Published, ...]


# The SentencePiece model of both; without a dict.txt, pieces get the ids of the published dictionary.
TOKENIZER = ("microsoft/kosmos-2-patch14-224", "sentencepiece.bpe.model")

# Sizes and hashes from the repositories' pages; that of the official Kosmos-2 file is from a duplicate, so the Hub's
# own hash takes precedence for it.
CATALOGUE = (
    Entry(
        name="kosmosg",
        stage="final (instruction tuning)",
        gives="the whole model",
        sources=(
            Published(
                repository="radames/Kosmos-G",
                file="checkpoint_final.pt",
                size=11_800_000_000,
                sha256="dea4acdf2d2f7934d13b5ff56662b947228021136a3d2e566701e44c88d56d72",
                pinned=True,
                official=False,
                licence="not stated by the mirror; KOSMOS-G's code is MIT",
                form="fairseq",
            ),
        ),
    ),
    Entry(
        name="kosmos-2",
        stage="stage 1 (pretraining)",
        gives="stage 1 exactly: `kg align` and `kg instruct` make a KOSMOS-G of it",
        sources=(
            Published(
                repository="microsoft/kosmos-2-patch14-224",
                file="model.safetensors",
                extras=("config.json", "sentencepiece.bpe.model"),
                size=6_660_000_000,
                sha256="051bf4b62a25429f4d542d11ec0c07a4ac1aac91003d3bf301133c6913008cbf",
                pinned=False,
                official=True,
                licence="MIT",
                form="transformers",
            ),
            Published(
                repository="sheldonxxxx/kosmos-2",
                file="kosmos-2-min.pt",
                size=7_190_000_000,
                sha256="f172f0f8690a0949a7fa1039bc0d898fd18f5671ac5d136807ff82e0193a987a",
                pinned=True,
                official=False,
                licence="not stated by the mirror; Kosmos-2 is MIT",
                form="fairseq",
            ),
        ),
    ),
)


def find_entry(name: str) -> Entry:
    """Return the entry of a name.

    Raises: MissingError that suggests the nearest name.
    """
    names = [entry.name for entry in CATALOGUE]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise MissingError(f"there are no published weights {name!r}; {hint}")
    return CATALOGUE[names.index(name)]


def is_entry(name: str) -> bool:
    """Tell whether the catalogue has this name."""
    return any(entry.name == name for entry in CATALOGUE)


def models_folder() -> Path:
    """Return the folder of downloaded models: $KG_MODELS, or kgcli/models in the user's cache."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kgcli" / "models"


def local_model(name: str) -> Path | None:
    """Return the model folder that `kg models pull NAME` wrote, if it is there."""
    folder = models_folder() / name
    return folder if is_entry(name) and (folder / CONFIG_NAME).is_file() else None


def list_sources() -> list[dict[str, Any]]:
    """Return one row per source, with its path on this machine ("" if absent)."""
    rows = []
    for entry in CATALOGUE:
        for source in entry.sources:
            here = local_model(entry.name) or cached_file(source)
            rows.append(
                {
                    "name": entry.name,
                    "stage": entry.stage,
                    "repository": source.repository,
                    "file": source.file,
                    "size": source.size,
                    "sha256": source.sha256,
                    "official": source.official,
                    "licence": source.licence,
                    "is_first": source is entry.sources[0],
                    "here": str(here or ""),
                }
            )
    return rows


def sources_text(*, as_json: bool) -> str:
    """Format the catalogue as text, or as one JSON object per source."""
    rows = list_sources()
    if as_json:
        return "".join(json.dumps(row) + "\n" for row in rows)
    lines = []
    for row in rows:
        kind = "official" if row["official"] else "unofficial mirror"
        lines += [
            f"{row['name']}: {row['stage']}",
            f"  source   {row['repository']}, {row['file']}, {row['size'] / 1e9:.2f} GB, {kind}",
            f"  sha256   {row['sha256']}",
            f"  licence  {row['licence']}",
            f"  here     {row['here'] or _command(row)}",
        ]
    return "\n".join(lines) + "\n"


def cached_file(source: Published) -> Path | None:
    """Return the source's file in the Hub's cache, if it is there."""
    storage = hub_cache() / f"models--{source.repository.replace('/', '--')}"
    return next(iter(sorted(storage.glob(f"snapshots/*/{source.file}"))), None)


def hub_cache() -> Path:
    """Return the folder of the Hub's cache, by huggingface_hub's rules; importing it takes longer than all of `ls`."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub"
    return Path(os.path.expandvars(named)).expanduser()


def _command(row: dict[str, object]) -> str:
    more = "" if row["is_first"] else f" --from {row['repository']}"
    accept = "" if row["official"] else " --accept"
    return f"no; `kg models pull {row['name']}{more}{accept}` fetches it"
