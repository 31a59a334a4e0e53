"""Laws of `kg schema`: it describes every key, and takes what the loader takes."""

import json

import pytest
import yaml

from kgcli.files import recipes_folder
from kgcli.recipe import DataConfig, OptimConfig, Recipe
from kgcli.training.checks.schema import KINDS, field_comments, make_schema
from kgcli.training.stages import STAGES


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_prints_a_schema(kg, kind):
    ran = kg("schema", kind)
    assert ran.code == 0
    schema = json.loads(ran.out)
    assert schema["$schema"].endswith("2020-12/schema") and schema["additionalProperties"] is False


def test_a_recipe_names_its_stages_and_keys():
    properties = make_schema("recipe", list(STAGES))["properties"]
    assert properties["stage"]["enum"] == list(STAGES)
    assert properties["steps"]["description"] == "optimizer steps"
    assert properties.keys() == Recipe.model_fields.keys()


def test_descriptions_are_the_comments_beside_the_fields():
    assert field_comments(OptimConfig)["lr"] == "peak, reached at the end of warm-up"
    assert field_comments(DataConfig)["batch_size"].startswith("samples per step")
    assert field_comments(Recipe)["compile"].startswith("torch.compile, ")
    defs = make_schema("recipe", [])["$defs"]
    assert defs["OptimConfig"]["properties"]["clip_norm"]["description"].startswith("global L2 norm")


def test_keys_of_shipped_recipes_are_in_the_schema():
    properties = make_schema("recipe", list(STAGES))["properties"]
    for path in recipes_folder().rglob("*.yaml"):
        assert yaml.safe_load(path.read_text("utf-8")).keys() <= properties.keys(), path
