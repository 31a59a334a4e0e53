"""Pictures that another system made, taken into a run, so that they are scored by the same code. No torch.

    DIR        named as a run's own below images/: <subject>/<prompt:02d>_<image>.png for DreamBench,
               <index // 1000:03d>/<index:06d>.png for COCO; .jpg, .jpeg and .webp as well
    FILE.csv   columns path (from the file's folder), prompt, and where the suite has them subject and image;
               a column scored_text, where it is there, must say what the benchmark says

Pictures are copied, so that a run stays what it was scored as.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kgcli.data.entries import data_files
from kgcli.data.images import open_image
from kgcli.errors import ImageError, MissingError, UsageError
from kgcli.evaluation.plan import MANIFEST, Item, Plan
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.run.generate import FOREIGN, check_foreign, digest_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SHOWN = 5

Sources = dict[str, Path]  # path of an item -> file


def find_pictures(images: Path, plan: Plan) -> Sources:
    """A file for each item of a plan, no more and no less.

    Raises: UsageError, MissingError.
    """
    images = images.expanduser()
    if images.is_dir():
        found = _in_folder(images, plan)
    elif images.suffix.lower() == ".csv":
        found = _in_csv(images, plan)
    else:
        raise UsageError(f"--images is {images}; it must be a folder or a .csv file that is there")
    absent = [item.path for item in plan.items if item.path not in found]
    if absent:
        raise MissingError(
            f"{images}: {len(plan.items) - len(absent)} of {len(plan.items)} pictures are there; missing are "
            f"{_listed([path.removeprefix('images/') for path in absent])}"
        )
    refused = [reason for path in found.values() if (reason := _why_not(path)) is not None]
    if refused:
        raise MissingError(f"{images}: {len(refused)} files cannot be scored, the first of them: {refused[0]}")
    return found


def foreign_plan(plan: Plan, sources: Sources, name: str) -> Plan:
    """The plan of a run that holds these pictures: the same question, another method."""
    items = tuple(
        dataclasses.replace(item, path=str(PurePosixPath(item.path).with_suffix(sources[item.path].suffix.lower())))
        for item in plan.items
    )
    digest = digest_of(sources[item.path] for item in plan.items)
    method: dict[str, Any] = {"name": name, FOREIGN: digest}
    return dataclasses.replace(plan, items=items, method=method)


def take_pictures(run: RunFolder, sources: Mapping[str, Path]) -> None:
    """Copy what is not there yet into the run, and write its manifest."""
    by_stem = {PurePosixPath(path).with_suffix(""): source for path, source in sources.items()}
    for item in run.missing():
        run.write_picture(item, by_stem[PurePosixPath(item.path).with_suffix("")].read_bytes())
    check_foreign(run)
    if not (run.path / MANIFEST).is_file():
        run.write_manifest()


def _in_folder(folder: Path, plan: Plan) -> Sources:
    expected = {PurePosixPath(item.path).relative_to("images").with_suffix(""): item.path for item in plan.items}
    found: Sources = {}
    surplus = []
    for path in data_files(folder, suffixes=SUFFIXES, recursive=True):
        name = PurePosixPath(path.relative_to(folder).as_posix())
        wanted = expected.get(name.with_suffix(""))
        if wanted is None or wanted in found:
            surplus.append(str(name))
        else:
            found[wanted] = path
    if surplus:
        raise UsageError(
            f"{folder}: {len(surplus)} pictures have no place in this benchmark: {_listed(surplus)}; name them "
            f"{'/'.join(PurePosixPath(plan.items[0].path).parts[1:])} and so on"
        )
    return found


def _in_csv(path: Path, plan: Plan) -> Sources:
    places = {(item.subject, item.prompt, item.image): item for item in plan.items}
    by_prompt = {item.prompt: item for item in plan.items} if plan.suite.endswith("coco") else {}
    found: Sources = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a mark
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--images {path} cannot be read: {error}") from None
    needed = ("path", "prompt") if by_prompt else ("path", "subject", "prompt", "image")
    absent = [name for name in needed if name not in (reader.fieldnames or ())]
    if absent:
        raise UsageError(f"{path} has no column {', '.join(absent)}; its first line names columns, with commas between")
    for line, row in enumerate(rows, start=2):
        item = _item_of_row(row, places, by_prompt, f"{path}, line {line}")
        if item.path in found:
            raise UsageError(f"{path}, line {line}: this place has a picture already")
        found[item.path] = path.parent / row["path"]
        if not found[item.path].is_file():
            raise MissingError(f"{path}, line {line}: there is no picture {found[item.path]}")
    return found


def _item_of_row(
    row: Mapping[str, str | None], places: Mapping[tuple[str, int, int], Item], by_prompt: Mapping[int, Item], at: str
) -> Item:
    """The item that a line of a table is for. Raises: UsageError."""
    try:
        prompt, image = int(row["prompt"] or ""), int(row.get("image") or 0)
        item = by_prompt[prompt] if by_prompt else places[row["subject"] or "", prompt, image]
        suffix = Path(row["path"] or "").suffix.lower()
    except (KeyError, ValueError):
        raise UsageError(
            f"{at}: no place in this benchmark; give the columns path, subject, prompt and image as a run's manifest "
            "has them"
        ) from None
    if suffix not in SUFFIXES:
        raise UsageError(f"{at}: {row['path']} is none of {', '.join(SUFFIXES)}")
    text = row.get("scored_text")
    if text and text != item.scored_text:
        raise UsageError(f"{at}: scored_text is {text!r}, the benchmark says {item.scored_text!r}")
    return item


def _why_not(path: Path) -> str | None:
    """Why a file is no picture that scoring takes; None where it is one."""
    try:
        open_image(path)
        return None
    except ImageError as error:
        return str(error)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
