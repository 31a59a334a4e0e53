"""Laws of `kg train`: recipes in an order in which each finds what it needs, and a run that goes on where it was."""

import shutil
from pathlib import Path

import pytest

from kgcli.data.loader import Batches
from kgcli.data.sources import open_source
from kgcli.errors import ConfigError, MissingError
from kgcli.recipe import dump_recipe, load_recipe, maker_of
from kgcli.training import chains
from kgcli.training.chains import CHAINS, Link, describe_chain, load_chain
from kgcli.training.checks.shapes import ShapeSetup
from kgcli.training.stages import make_stage
from kgcli.training.stages.base import Setup
from kgcli.training.stages.nano_recognisers import VIEW_SIZE
from kgcli.training.stages.start import find_start


@pytest.mark.parametrize("name", CHAINS)
def test_every_recipe_finds_what_it_starts_from_among_those_before_it(name):
    made = set()
    for link in load_chain(name):
        assert {str(Path(source)) for source in link.recipe.init_from.values()} <= made, link.name
        made.add(f"{link.recipe.output_dir}/final")


def test_recipes_that_share_a_folder_of_images_draw_the_same():
    shared = {}
    for link in load_chain("nano"):
        data = link.recipe.data
        if data.rendered:
            assert shared.setdefault(data.rendered, (data.kinds, data.seed, data.pool)) == (
                data.kinds,
                data.seed,
                data.pool,
            )


def test_the_state_of_a_run_is_read_off_its_folder(tmp_path):
    link = Link("a", load_recipe("smoke/vae", [f"output_dir={tmp_path / 'run'}", "steps=40"]))
    assert (link.is_done, link.state) == (False, "to do")
    for step in (8, 16):
        (tmp_path / f"run/checkpoints/step_{step:07d}").mkdir(parents=True)
    assert (link.is_done, link.state) == (False, "interrupted at step 16 of 40")
    (tmp_path / "run/final").mkdir()
    assert (link.is_done, link.state) == (True, "done")
    assert describe_chain([link]).endswith("all done")


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("runs/nano/clip/final", "kg base clip nano/clip"),
        ("runs/nano/align/final", "kg align nano/align"),
        ("runs/nano/unet_many/final/vae", "kg base unet nano/unet_many"),
    ],
)
def test_the_command_that_makes_what_is_missing_is_named(folder, command):
    assert maker_of(folder) == command
    with pytest.raises(MissingError, match=f"there is no folder {folder}; `{command}` makes it"):
        find_start("model", folder)


def test_no_command_is_named_for_what_no_recipe_makes():
    assert maker_of("runs/of/my/own") is None
    with pytest.raises(MissingError, match="run the stage that makes it first"):
        find_start("model", "runs/of/my/own")


def test_runs_of_an_earlier_world_are_not_taken_for_those_of_a_chain(kg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert kg("train", "nano", "--list").code == 0
    for name in ("clip", "judge"):
        leave_run(f"nano/{name}", "image_size=64")
    done = kg("train", "nano", "--list")
    assert done.code == ConfigError.exit_code
    for name in ("clip", "judge"):
        assert f"runs/nano/{name} holds a run at 64 px, its recipe makes images of 128 px; move the" in done.err


def leave_run(name, *overrides):
    """Make the folder of a finished run, as far as its recipe."""
    recipe = load_recipe(name, list(overrides))
    Path(recipe.output_dir, "final").mkdir(parents=True)
    Path(recipe.output_dir, "recipe.yaml").write_text(dump_recipe(recipe))


@pytest.mark.parametrize("of_dry_run", [False, True])
def test_no_run_starts_from_one_of_an_earlier_world(tmp_path, monkeypatch, of_dry_run):
    monkeypatch.chdir(tmp_path)
    kind = ShapeSetup if of_dry_run else Setup
    leave_run("nano/clip", "image_size=64")
    recipe = load_recipe("nano/unet")
    with pytest.raises(ConfigError, match="runs/nano/clip holds a run at 64 px, its recipe makes images of 128 px"):
        setup_of(recipe, kind).source("clip")
    for size in (64, 128):  # a chain at another size, and what the user has named anew
        own = recipe.model_copy(update={"image_size": size, "init_from": {"clip": "mine/clip/final"}})
        shutil.copytree("runs/nano/clip", "mine/clip", dirs_exist_ok=True)
        assert setup_of(own, kind).source("clip") == Path("mine/clip/final")
    setup_of(recipe.model_copy(update={"image_size": 64}), kind).source("clip")


def test_sizes_of_stages_that_show_no_images_need_not_agree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    leave_run("kosmosg/align")
    setup_of(load_recipe("kosmosg/instruct"), Setup).source("model")


def setup_of(recipe, kind):
    """The setup of a recipe's stage."""
    names = ("stage", "init_from", "parts", "options", "model", "image_size", "seed")
    return kind(texts=None, **{name: getattr(recipe, name) for name in names})


def test_an_unknown_chain_names_those_there_are():
    with pytest.raises(MissingError, match="no chain of recipes 'micro'; the chains are nano, smoke"):
        load_chain("micro")


def test_a_chain_runs_what_is_left_and_says_what_is_next(kg, tmp_path, monkeypatch):
    monkeypatch.setitem(chains.CHAINS, "tiny", ("smoke/vae", "smoke/sharpen"))
    monkeypatch.chdir(tmp_path)
    done = kg("train", "tiny", "--list")
    assert "smoke/vae      to do" in done.out
    assert done.out.endswith("next: smoke/vae\n")
    assert kg("train", "tiny", "steps=2").out.endswith("all done\n")
    assert (tmp_path / "runs/smoke/sharpen/final/vae/config.json").is_file()
    first = (tmp_path / "runs/smoke/vae/metrics.jsonl").read_text("utf-8")
    assert kg("train", "tiny", "steps=2").out.endswith("all done\n")
    assert (tmp_path / "runs/smoke/vae/metrics.jsonl").read_text("utf-8") == first


@pytest.mark.parametrize("stage", ["judge", "eval_clip", "eval_dino"])
def test_evaluators_see_images_of_every_size_as_outputs_are_scored(stage):
    views = []
    for size in (64, 128):
        few = ["options.captions=300"] if stage == "eval_clip" else []
        recipe = load_recipe(f"smoke/{stage}", [f"image_size={size}", "data.batch_size=8", *few])
        source = open_source(recipe.data, size, "match")
        made = make_stage(recipe, source.texts)
        views.append(Batches(source, made.collator(None), batch_size=8)[0].views)
    assert views[0].shape == views[1].shape
    assert views[0].shape[-1] == VIEW_SIZE
