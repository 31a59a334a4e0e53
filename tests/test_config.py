"""Laws of recipes: strict, named, overridden from the command line, and the same after a round trip."""

import re

import pytest
import yaml

from kgcli.config import ModelConfig
from kgcli.errors import ConfigError, IncompatibleError, MissingError
from kgcli.files import recipes_folder
from kgcli.recipe import Recipe, dump_recipe, find_recipe, load_recipe

SHIPPED = sorted(recipes_folder().rglob("*.yaml"))
NAMES = [path.relative_to(recipes_folder()).with_suffix("").as_posix() for path in SHIPPED]


@pytest.fixture
def write(tmp_path):
    """A recipe file of the given text."""

    def make(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return make


def test_recipes_ship():
    stages = {"vae", "clip", "unet", "pretrain", "align", "instruct"}
    for folder in ("nano", "smoke"):
        assert {load_recipe(name).stage for name in NAMES if name.startswith(folder)} >= stages


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_is_sound_and_names_its_own_command(name):
    recipe = load_recipe(name)
    head = find_recipe(name).read_text().split("\nstage:")[0]
    command = recipe.stage if recipe.stage in ("pretrain", "align", "instruct") else f"base {recipe.stage}"
    assert re.search(rf"^# Run: +kg {command} {name}$", head, re.MULTILINE), head
    for folder in recipe.init_from.values():
        assert folder in head or name.startswith("smoke")


@pytest.mark.parametrize("name", NAMES)
def test_a_dumped_recipe_reads_back_equal(name, write):
    recipe = load_recipe(name, ["optim.lr=3e-5", "seed=7"])
    assert load_recipe(write(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize("name", ["nano/align", "nano/align.yaml", str(recipes_folder() / "nano" / "align.yaml")])
def test_a_recipe_is_found_by_name_and_by_path(name):
    assert find_recipe(name).samefile(recipes_folder() / "nano" / "align.yaml")


def test_a_file_at_hand_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "align.yaml").write_text(dump_recipe(load_recipe("nano/align", ["steps=3"])))
    assert load_recipe("nano/align").steps == 3


def test_a_recipe_that_is_not_there_names_the_nearest():
    with pytest.raises(MissingError, match=r"there is no recipe 'nano/alig'; did you mean nano/align\?"):
        load_recipe("nano/alig")
    with pytest.raises(MissingError, match="kg ls"):
        load_recipe("q")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=12", 12),
        ("optim.lr=1e-4", 1e-4),
        ("optim.lr=2", 2.0),
        ("data.kinds={text: 0.5, pair: 0.5}", {"text": 0.5, "pair": 0.5}),
        ("data.kinds.pair=2", {"text": 1.0, "pair": 2.0}),
        ("ema_decay=null", None),
        ("output_dir=runs/x=y", "runs/x=y"),
        ("data.keep=true", True),
    ],
)
def test_an_override_sets_a_value_of_its_type(override, expected):
    value = load_recipe("nano/align", [override])
    for step in override.partition("=")[0].removesuffix(".pair").split("."):
        value = getattr(value, step)
    assert value == expected
    assert type(value) is type(expected)


def test_the_last_override_wins():
    assert load_recipe("nano/align", ["steps=1", "steps=2"]).steps == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"unknown key optim\.lrr; did you mean lr\?"),
        ("stepz=1", r"unknown key stepz; did you mean steps\?"),
        ("data.batchsize=1", r"unknown key data\.batchsize; did you mean batch_size\?"),
        ("model.vision.widht=1", r"unknown key model\.vision\.widht; did you mean width\?"),
        ("zzz=1", "unknown key zzz$"),
        ("steps", "'steps' is not an override; write key=value"),
        ("=1", "is not an override"),
        ("steps.more=1", "steps has no keys below it"),
        ("steps=many", "steps: .*integer"),
        ("steps=0", "steps: .*greater than or equal to 1"),
        ("data.batch_size=-4", r"data\.batch_size: .*greater than or equal to 1"),
        ("optim.lr=-1", r"optim: lr is -1\.0; it must be above 0"),
        ("optim.decay_fraction=0", r"decay_fraction is 0\.0; it must be above 0 and at most 1"),
        ("optim.schedule=wavy", r"optim\.schedule: "),
        ("precision=fp8", "precision: .*'fp32', 'bf16' or 'fp16'"),
        ("keep_checkpoints=0", "keep_checkpoints: .*greater than or equal to 1"),
        ("model.mllm.num_heads=7", "mllm: width 2048 does not divide into 7 heads"),
        ("model.vision.patch_size=15", "image_size 224 is not a multiple of patch_size 15"),
        ("steps=[", "is not an override"),
    ],
)
def test_a_wrong_override_is_one_clear_error(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe("nano/align", [override])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["", "just words", "- a\n- list", "a: [", "\t:", "{1: 2}"])
def test_what_is_no_recipe_is_one_clear_error(text, write):
    with pytest.raises(ConfigError, match=r"recipe\.yaml") as caught:
        load_recipe(write(text))
    assert "\n" not in str(caught.value)


def test_all_faults_of_a_file_are_listed_together(write):
    text = "stage: align\noutput: runs\nsteps: 0\ndata: {kinds: {text: 1}, batchsize: 4}\noptim: {lr: high}\n"
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(text))
    said = str(caught.value)
    assert "unknown key output; did you mean output_dir?" in said and "output_dir: Field required" in said
    assert "unknown key data.batchsize; did you mean batch_size?" in said and "data.batch_size: Field required" in said
    assert "steps: " in said and "optim.lr: " in said
    assert "\n" not in said and said.index("unknown key") < said.index("Field required")


def test_bytes_that_are_no_text_are_no_recipe(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_recipe(str(tmp_path / "a.yaml"))


def test_a_recipe_of_another_stage_is_refused():
    with pytest.raises(ConfigError, match="is a recipe for `kg align`, not `kg instruct`"):
        load_recipe("nano/align", stage="instruct")


def test_recipes_cannot_be_changed_in_place():
    recipe = load_recipe("nano/align")
    with pytest.raises(ValueError, match="frozen"):
        recipe.steps = 3


def test_every_default_is_a_valid_value():
    data = {"kinds": {"text": 1.0}, "batch_size": 1}
    recipe = Recipe.model_validate({"stage": "x", "output_dir": "y", "steps": 1, "data": data})
    assert Recipe.model_validate(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_a_model_folder_of_another_version_is_no_fault_of_the_user(tmp_path):
    from kgcli.weights.config import read_model_config

    (tmp_path / "config.json").write_text(ModelConfig().model_dump_json())
    assert read_model_config(tmp_path) == ModelConfig()
    (tmp_path / "config.json").write_text('{"mllm": {"depth": 3}}')
    with pytest.raises(IncompatibleError, match=r"mllm\.depth"):
        read_model_config(tmp_path)
