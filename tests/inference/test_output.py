"""Images and the files beside them: never one of another image, never over somebody else's file."""

import json

import pytest
from PIL import Image

from kgcli.errors import OutputError
from kgcli.inference import output
from kgcli.inference.output import write_image

RECORD = {"kgcli": "1", "prompt": "a", "negative_prompt": "", "seed": 1, "steps": 1, "scheduler": "ddim", "width": 8}
RECORD |= {"height": 8, "guidance_scale": 1.0, "adapters": [], "model": {"name": "m", "sha256": "0" * 64}}


@pytest.fixture
def image():
    return Image.new("RGB", (8, 8), "red")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_appears_while_an_image_is_generated_stays(tmp_path, image):
    (tmp_path / "a.png").write_bytes(b"theirs")
    with pytest.raises(OutputError, match="made by someone else"):
        write_image(tmp_path / "a.png", image, RECORD, overwrite=False)
    assert (tmp_path / "a.png").read_bytes() == b"theirs" and names(tmp_path) == ["a.png"]


def test_an_image_comes_before_the_file_beside_it_and_an_older_one_goes_first(tmp_path, image, monkeypatch):
    write_image(tmp_path / "a.jpg", image, RECORD)
    write = output.write_whole
    moments = []

    def look(path, data, **options):
        moments.append((path.name, names(tmp_path)))
        write(path, data, **options)

    monkeypatch.setattr(output, "write_whole", look)
    write_image(tmp_path / "a.jpg", image, RECORD)
    assert moments == [("a.jpg", ["a.jpg"]), ("a.jpg.json", ["a.jpg"])]
    assert json.loads((tmp_path / "a.jpg.json").read_text())["seed"] == 1


def test_without_metadata_no_older_file_stays_beside_an_image(tmp_path, image):
    write_image(tmp_path / "a.jpg", image, RECORD)
    write_image(tmp_path / "a.jpg", image, None)
    assert names(tmp_path) == ["a.jpg"]


def test_an_image_that_lacks_its_file_is_generated_again_and_one_of_others_is_not(kg, tiny_model, tmp_path, image):
    asked = ("generate", "a cat", "--model", tiny_model, "-s", 1, "-o", "a.jpg", "--skip-existing")
    assert kg(*asked).lines == ["a.jpg"]
    whole = (tmp_path / "a.jpg.json").read_bytes()
    assert kg(*asked).lines == []
    (tmp_path / "a.jpg.json").unlink()
    assert kg(*asked).lines == ["a.jpg"] and (tmp_path / "a.jpg.json").read_bytes() == whole
    (tmp_path / "a.jpg.json").unlink()
    image.save(tmp_path / "a.jpg")  # a photo of the user's own
    photo = (tmp_path / "a.jpg").read_bytes()
    assert kg(*asked).lines == [] and (tmp_path / "a.jpg").read_bytes() == photo
