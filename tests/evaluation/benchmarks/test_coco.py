import pytest
from benchmark_data import write_annotations

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.benchmarks.coco import UNIT, choose_captions, coco_plan, sample_indices


def test_the_published_sample_is_met():
    indices = sample_indices(202_654, 30_000)
    assert indices[:5] == [100989, 198693, 110250, 10612, 67873] and len(set(indices)) == 30_000


def test_the_published_choice_samples_in_the_order_of_the_file(tmp_path):
    captions = choose_captions("published", write_annotations(tmp_path, 60), 20)
    assert [one.text for one in captions.chosen] == [f"a cat number {index}" for index in sample_indices(60, 20)]
    assert captions.fingerprint["of"] == 60 and captions.fingerprint["choice"] == "published"


def test_one_caption_an_image(tmp_path):
    captions = choose_captions("one", write_annotations(tmp_path, 60), 20)
    assert len({one.image_id for one in captions.chosen}) == 20 == captions.fingerprint["of"]
    assert all(int(one.text.split()[-1]) % 3 == 0 for one in captions.chosen)


def test_captions_of_files(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\n\n a  dog \n")
    (tmp_path / "a.jsonl").write_text('{"caption": "a cat", "image_id": 7}\n{"caption": "a dog"}\n')
    texts = [[one.text for one in choose_captions(str(tmp_path / name), None).chosen] for name in ("a.txt", "a.jsonl")]
    assert texts == [["a cat", "a dog"]] * 2
    (tmp_path / "b.jsonl").write_text('{"text": "a cat"}\n')
    with pytest.raises(UsageError, match="line 1: no caption"):
        choose_captions(str(tmp_path / "b.jsonl"), None)


def test_the_choice_is_in_the_protocol(tmp_path):
    folder = write_annotations(tmp_path, 90)
    plans = [coco_plan(choose_captions(choice, folder, 20), 0, {}, folder) for choice in ("published", "one")]
    assert plans[0].protocol != plans[1].protocol and plans[0].protocol["num_items"] == 20
    assert [len(unit) for unit in plans[0].units()] == [UNIT, UNIT, 20 - 2 * UNIT]


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UsageError, match="give --data"):
        choose_captions("published", None)
    with pytest.raises(MissingError, match="annotations_trainval2014.zip"):
        choose_captions("published", tmp_path)
    with pytest.raises(UsageError, match="30000 captions are requested, but .* has 60"):
        choose_captions("published", write_annotations(tmp_path, 60))
    with pytest.raises(UsageError, match="--captions"):
        choose_captions("some", tmp_path)
