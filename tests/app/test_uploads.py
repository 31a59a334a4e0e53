"""Laws of uploaded images: bytes in, an image out, and nothing of this machine is read."""

import base64
import hashlib

import pytest
from app_images import item, png

from kgcli.app import uploads
from kgcli.app.uploads import base_name, read_uploads
from kgcli.errors import ImageError, UsageError


def test_an_upload_is_the_file_that_was_sent():
    (upload,) = read_uploads([item(weight=0.5)], most=2)
    assert upload.file.sha256 == hashlib.sha256(png()).hexdigest()
    assert (upload.file.name, upload.weight, upload.file.load().size) == ("cat.png", 0.5, (24, 16))


@pytest.mark.parametrize("empty", [None, "", []])
def test_no_images_are_fine(empty):
    assert read_uploads(empty, most=2) == []


def test_a_data_url_is_read_too():
    sent = item()
    (upload,) = read_uploads([{**sent, "data": "data:image/png;base64," + sent["data"]}], most=1)
    assert upload.file.sha256 == hashlib.sha256(png()).hexdigest()


def test_a_crop_is_a_part_of_the_upright_image():
    (upload,) = read_uploads([item(crop=[0.5, 0, 1, 1])], most=1)
    assert upload.file.load().size == (12, 16)
    assert upload.file.name == "cat-crop.png"
    (whole,) = read_uploads([item(crop=[0, 0, 1, 1])], most=1)
    assert whole.file.name == "cat.png"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ("/etc/passwd", "images is not a list"),
        ([1], "image 1 cannot be read"),
        ([{"path": "/etc/passwd"}], "data: Field required"),
        ([{"name": "a.png", "data": {"path": "/etc/passwd"}}], "image 1 cannot be read: data"),
        ([{"name": "a.png", "data": "/etc/passwd"}], "not base64 of an image file"),
        ([{"name": "a.png", "data": "file:///etc/passwd"}], "not base64"),
        ([{"name": "a.png", "data": "https://example.com/cat.png"}], "not base64"),
        (
            [{"name": "a.png", "data": base64.b64encode(b"root:x:0:0").decode()}],
            "is not an image in a supported format",
        ),
        ([{"name": "a.png", "data": ""}], "empty"),
        ([item(weight=3)], "weight"),
        ([item(weight=float("nan"))], "weight"),
        ([item(crop=[0.5, 0, 0.2, 1])], "crop of image 1 is outside"),
        ([item(crop=[0, 0, 0.1, 0.1])], "too small"),
        ([item(), item()], "2 images were given; at most 1"),
    ],
)
def test_anything_else_is_refused_in_one_line(sent, message):
    with pytest.raises((UsageError, ImageError), match=message) as caught:
        read_uploads(sent, most=1)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(uploads, "MAX_BYTES", 100)
    with pytest.raises(ImageError, match="too large"):
        read_uploads([item()], most=1)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\cat.png", "cat.png"),
        ("/tmp/a/b.png", "b.png"),
        ("", "image.png"),
        ("..", "image.png"),
        ("a\nb.png", "a\\nb.png"),
        ("x" * 300 + ".png", "x" * 96 + ".png"),
    ],
)
def test_names_lose_their_folders(sent, kept):
    assert base_name(sent) == kept
