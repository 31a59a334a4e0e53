"""`kg ls`: recipes and images apart, each with a description."""

from __future__ import annotations

import json

from kgcli.weights.shipped import EXAMPLE_IMAGES, describe_shipped, is_image, shipped_names
from kgcli.world.examples import EXAMPLES, example_spec
from kgcli.world.tables import SCENES
from kgcli.world.text import describe


def test_recipes_and_images_stand_apart(kg, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    recipes, images = kg("ls").out.split("\n\n")
    assert recipes.startswith("Recipes") and images.startswith("Images")
    assert "nano/align" in recipes and ".png" not in recipes
    assert "nano/cat.png     an orange cat in the forest" in images
    assert all(len(line) <= 100 for line in kg("ls").lines)


def test_names_alone_for_other_programs(kg):
    assert kg("ls", "--names").lines == shipped_names()
    assert kg("ls", "smoke/", "--names").lines == [name for name in shipped_names() if name.startswith("smoke/")]
    rows = [json.loads(line) for line in kg("ls", "--json").lines]
    assert [row["name"] for row in rows] == shipped_names()
    assert {row["kind"] for row in rows} == {"recipe", "image"} and all(row["description"] for row in rows)
    assert kg("ls", "nothing", "--names").lines in ([], [""])


def test_descriptions_of_images_are_the_worlds():
    assert set(EXAMPLE_IMAGES) == {name for name in shipped_names() if is_image(name)}
    for name in EXAMPLES:
        spec = example_spec(name)
        subject = describe(spec.subjects[0].subject, colours=True)
        assert EXAMPLE_IMAGES[f"nano/{name}"] == f"{subject} {SCENES[spec.scene]}"


def test_descriptions_of_recipes_are_one_clause():
    for name in shipped_names():
        words = describe_shipped(name)
        assert words and "\n" not in words and len(words) < 160, name
