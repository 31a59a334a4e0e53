"""Laws of training on shards: the nano world trains bit for bit as its generator does; bad rows are counted."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_loop import chain, rows_of, smoke  # noqa: F401
from world_shards import write_world

from kgcli.data.sources import open_source
from kgcli.errors import MissingError
from kgcli.recipe import DataConfig, Recipe
from kgcli.training import loop as training
from kgcli.training.stages import find_stage

pytest.importorskip("pyarrow")
NUM = 16  # 4 steps of 4 samples


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def on_shards(recipe, folder, out, **settings):
    """The recipe with shards in the place of the nano world."""
    source = {"kind": "shards", "path": str(folder), "shuffle": False}
    data = {"sources": [source], "batch_size": recipe.data.batch_size, "num_workers": 0, **settings}
    values = recipe.model_dump(mode="json") | {"data": data, "output_dir": str(out)}
    return Recipe.model_validate(values)


@pytest.mark.parametrize("stage", ["pretrain", "align", "instruct"])
def test_the_world_as_shards_trains_bit_for_bit_as_its_generator(chain, tmp_path, stage):  # noqa: F811
    own = ["data.pool=16"] if stage == "instruct" else []
    recipe = smoke(chain, stage, *own, out=tmp_path / "generator")
    source = open_source(recipe.data, recipe.image_size, find_stage(stage).use)
    write_world(tmp_path / "world", source, NUM, recipe.image_size, max_rows=NUM if stage == "instruct" else 5)
    training.train(recipe)
    training.train(on_shards(recipe, tmp_path / "world", tmp_path / "shards"))
    assert rows_of(tmp_path / "generator") == rows_of(tmp_path / "shards")
    one, other = (load_file(tmp_path / name / "final/model.safetensors") for name in ("generator", "shards"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
