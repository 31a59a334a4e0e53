"""Laws of `kg export`: a checkpoint becomes the folder that its run would end with."""

import json

import pytest

from kgcli.errors import MissingError
from kgcli.training.export import find_checkpoint

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
    assert json.loads((tmp_path / "now/judges/config.json").read_text())["world"] == 64


def test_what_is_no_checkpoint_and_what_is_there_are_said(kg, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="is no checkpoint and no run folder"):
        find_checkpoint(tmp_path / "empty")
    ran = kg("export", "empty", "-o", "now")
    assert ran.code == 3 and "no checkpoint" in ran.err


def test_a_folder_with_files_is_kept_unless_it_may_go(kg, run, tmp_path):
    (tmp_path / "now").mkdir()
    (tmp_path / "now/notes.txt").write_text("mine")
    ran = kg("export", RUN, "-o", "now")
    assert ran.code == 2 and "--overwrite" in ran.err and (tmp_path / "now/notes.txt").is_file()
    assert kg("export", RUN, "-o", "now", "--overwrite").code == 0
    assert (tmp_path / "now/judges/config.json").is_file()
