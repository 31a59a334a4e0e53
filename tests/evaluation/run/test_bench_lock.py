"""Two processes on one benchmark's run folder: the second is refused, nothing is lost."""

from kgcli.evaluation.run.generate import LOCKS
from kgcli.files import locked


def test_a_run_that_is_generated_or_scored_elsewhere_is_refused(kg, tmp_path, monkeypatch):
    (tmp_path / "captions.txt").write_text("a cat\na dog\n")
    monkeypatch.setattr("kgcli.evaluation.run.benchmark.generate_run", lambda *_: None)
    asked = ("eval", "coco", "--captions", "captions.txt", "--only", "generate", "-o", "run", "--method", "kosmosg")
    with locked(tmp_path / "run" / LOCKS, name="shard-0-of-1"):
        done = kg(*asked)
        assert done.code == 2 and "holds no run" in done.err  # no plan yet: another's folder
    (tmp_path / "run" / LOCKS / "shard-0-of-1").unlink(missing_ok=True)
    (tmp_path / "run" / LOCKS).rmdir()
    (tmp_path / "run").rmdir()
    assert kg(*asked).code == 3  # the plan is there, its images are not
    with locked(tmp_path / "run" / LOCKS, name="shard-0-of-1"):
        done = kg(*asked)
    assert done.code == 1 and "another kg is at work in run" in done.err
