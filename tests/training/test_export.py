"""Laws of `kg export`: a checkpoint becomes the folder that its run would end with."""

import json
from importlib.util import find_spec

import pytest
import yaml

from kgcli.errors import MissingError
from kgcli.training.export import find_checkpoint, is_export

RUN = "runs/smoke/judge"


@pytest.fixture
def run(kg, tmp_path):
    """A finished run with two checkpoints."""
    settings = ["steps=2", "save_every=1", "keep_checkpoints=2", "data.batch_size=4", "data.num_workers=0"]
    done = kg("base", "judge", "smoke/judge", *settings, "data.pool=8")
    assert done.code == 0, done.err
    return tmp_path / RUN


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_last_checkpoint_gives_the_result_and_an_earlier_one_does_not(kg, run, tmp_path):
    before = contents(run)
    done = kg("export", RUN, "-o", "now")
    assert done.code == 0 and done.out == "now\n" and "step 2 of 2" in done.err, done.err
    assert contents(tmp_path / "now") == contents(run / "final")
    assert kg("export", f"{RUN}/checkpoints/step_0000001", "-o", "earlier").code == 0
    earlier = contents(tmp_path / "earlier")
    assert earlier.keys() == contents(run / "final").keys() and earlier != contents(run / "final")
    assert contents(run) == before
    assert json.loads((tmp_path / "now/judges/config.json").read_text())["world"] == 128


def test_what_is_no_checkpoint_and_what_is_there_are_said(kg, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="is no checkpoint and no run folder"):
        find_checkpoint(tmp_path / "empty")
    ran = kg("export", "empty", "-o", "now")
    assert ran.code == 3 and "no checkpoint" in ran.err


def test_an_earlier_export_gives_way_where_it_may(kg, run, tmp_path):
    assert kg("export", f"{RUN}/checkpoints/step_0000001", "-o", "now").code == 0
    ran = kg("export", RUN, "-o", "now")
    assert ran.code == 2 and "--overwrite" in ran.err
    assert kg("export", RUN, "-o", "now", "--overwrite").code == 0
    assert contents(tmp_path / "now") == contents(run / "final")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("mine", "is not an earlier export"),
        ("models", "is not an earlier export"),
        ("mine/notes.txt", "is a file"),
        ("now", "is not an earlier export"),
        (RUN, "lies in the run"),
        (f"{RUN}/final", "lies in the run"),
        (f"{RUN}/checkpoints/step_0000002/new", "lies in the run"),
        ("runs", "contains what is to be read"),
        (".", "contains what is to be read"),
    ],
)
def test_nothing_but_an_earlier_export_is_replaced(kg, run, tmp_path, without_engine, out, message):
    """Nor does torch load to find out."""
    for name in ("mine/notes.txt", "models/a/config.json", "now/judges/config.json", "now/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    for checkpoint in (RUN, f"{RUN}/checkpoints/step_0000001"):
        ran = kg("export", checkpoint, "-o", out, "--overwrite")
        assert ran.code == 2 and message in ran.err, ran.err
        assert contents(tmp_path) == before


def test_results_of_all_stages_are_known_as_exports(chain):
    for final in chain.glob("*/final"):
        assert is_export(final), sorted(path.name for path in final.iterdir())


def test_no_tracker_is_needed(kg, run, tmp_path):
    recipe = run / "checkpoints/step_0000002/recipe.yaml"
    values = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump(values | {"trackers": ["trackio"]}))
    if find_spec("trackio") is not None:
        pytest.skip("trackio is installed")
    assert kg("export", RUN, "-o", "now").code == 0
