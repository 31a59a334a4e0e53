"""Laws of `kg explain`: its files, its output, and that nothing there is replaced."""

import json

from PIL import Image

PROMPT = "<image:cat.png> in the snow"


def test_the_image_its_overlays_and_the_page_are_written(kg, cat, tmp_path, tiny_model):
    done = kg("explain", PROMPT, "--model", tiny_model, "-s", 1, "-o", "out.png")
    assert done.code == 0, done.err
    names = [
        "out.png",
        "out-1-cat.png",
        "out-word-01-in.png",
        "out-word-02-the.png",
        "out-word-03-snow.png",
        "out.html",
    ]
    assert done.lines == names and all((tmp_path / name).is_file() for name in names)
    assert kg("generate", PROMPT, "--model", tiny_model, "-s", 1, "-o", "same.png").code == 0
    assert Image.open(tmp_path / "out.png").tobytes() == Image.open(tmp_path / "same.png").tobytes()
    assert kg("inspect", "out.png", "--json").code == 0


def test_json_holds_the_share_of_every_part(kg, cat, tiny_model):
    done = kg("explain", PROMPT, "--model", tiny_model, "-s", 1, "-o", "out.png", "--no-words", "--json")
    (record,) = map(json.loads, done.lines)
    assert record == {
        "path": "out.png",
        "page": "out.html",
        "parts": [{"part": "cat.png", "image": 1, "share": 1.0, "overlay": "out-1-cat.png"}],
    }


def test_an_image_made_before_is_explained_from_its_metadata(kg, cat, tmp_path, tiny_model):
    assert kg("generate", PROMPT, "--model", tiny_model, "-s", 1, "-o", "made.png").code == 0
    done = kg("explain", "--from", "made.png", "--model", tiny_model, "-o", "out.png", "--no-words")
    assert done.code == 0, done.err
    assert Image.open(tmp_path / "out.png").tobytes() == Image.open(tmp_path / "made.png").tobytes()


def test_files_that_are_there_stay(kg, cat, tmp_path, tiny_model, without_engine):
    (tmp_path / "out-1-cat.png").write_text("mine")
    done = kg("explain", PROMPT, "--model", tiny_model, "-o", "out.png")
    assert done.code == 2 and "out-1-cat.png already exists; give --overwrite or another --out" in done.err
    assert (tmp_path / "out-1-cat.png").read_text() == "mine" and not (tmp_path / "out.png").exists()


def test_a_prompt_of_no_parts_is_refused_before_the_model_loads(kg, tiny_model, without_engine):
    done = kg("explain", "...", "--model", tiny_model, "-o", "out.png")
    assert done.code == 2 and "nothing to explain" in done.err


def test_names_of_overlays_are_file_names(kg, cat, tmp_path, tiny_model):
    (tmp_path / "My Cat.v2.png").write_bytes((tmp_path / "cat.png").read_bytes())
    done = kg("explain", "<image:My Cat.v2.png> zo\u00eb", "--model", tiny_model, "-s", 1, "-o", "out.png")
    assert done.lines == ["out.png", "out-1-my-cat-v2.png", "out-word-01-zo\u00eb.png", "out.html"]
