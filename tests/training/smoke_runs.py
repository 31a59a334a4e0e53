"""The smoke recipes as a chain of runs in one folder, and what a run leaves."""

import json
from pathlib import Path

from kgcli.recipe import load_recipe

CHAIN = ("vae", "clip", "unet", "pretrain", "align", "instruct")
SMALL = ["data.batch_size=4", "data.pool=8"]


def smoke(root, stage, *overrides, out=None):
    """The smoke recipe of a stage, from and to the folders of `root`."""
    pool = [value for value in SMALL if stage not in ("vae", "align") or "pool" not in value]
    recipe = load_recipe(f"smoke/{stage}", [*pool, *overrides], stage=stage)
    sources = {part: f"{root}/{Path(path).parts[-2]}/final" for part, path in recipe.init_from.items()}
    return recipe.model_copy(update={"output_dir": str(out or root / stage), "init_from": sources})


def rows_of(folder):
    """The metrics of a run, but for the clock's."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocks = ("samples_per_second", "cpu_seconds")
    return [{name: value for name, value in row.items() if name not in clocks} for row in rows]


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
