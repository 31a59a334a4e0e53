"""Laws of the page's prompts: they can name uploaded images, by number, and nothing else."""

import pytest
from app_images import item

from kgcli.app.limits import MAX_LINES
from kgcli.app.prompts import edit_request, read_lines, read_request
from kgcli.app.uploads import read_uploads
from kgcli.errors import PromptError, UsageError
from kgcli.weights.folder import open_model


@pytest.fixture(scope="module")
def folder(tiny_model):
    return open_model(str(tiny_model))


@pytest.fixture
def two():
    return read_uploads([item(), item("blue", "dog.png", weight=0.5)], most=3)


def test_numbers_are_the_uploaded_images_in_the_prompts_order(folder, two):
    request = read_request(folder, "<image:-2> and <image:-1>", two)
    assert [image.name for image in request.images] == ["dog.png", "cat.png"]
    assert [ref.weight for ref in request.prompt.images] == [0.5, 1.0]


def test_a_weight_in_the_tag_wins_over_the_slider(folder, two):
    request = read_request(folder, "<image:-1> and <image:-2|weight=2>", two)
    assert [ref.weight for ref in request.prompt.images] == [1.0, 2.0]


def test_one_image_may_stand_twice(folder, two):
    assert len(read_request(folder, "<image:-1> <image:-1> <image:-2>", two).images) == 3


@pytest.mark.parametrize(
    "tag",
    [
        "/etc/passwd",
        "/etc/hostname",
        "..",
        "../cat.png",
        "../../../../etc/passwd",
        "~/.ssh/id_rsa",
        "cat.png",
        "nano/cat.png",
        "recipes/nano/cat.png",
        "C:\\\\secret.png",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "http://127.0.0.1:1/cat.png",
        "https://example.com/cat.png",
        "ftp://example.com/cat.png",
        "\\-1",
        "-0",
        "-9",
    ],
)
def test_a_tag_that_names_anything_else_is_refused_at_its_place(folder, two, tag):
    with pytest.raises(PromptError) as caught:
        read_request(folder, f"a cat <image:{tag}> in the snow", two)
    assert caught.value.column in range(7, 30)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["look at file:///etc/passwd", "a cat from https://example.com/cat.png"])
def test_addresses_in_the_text_are_refused(folder, text):
    with pytest.raises(PromptError, match="opens no files and no addresses"):
        read_request(folder, text, [])


@pytest.mark.parametrize("tag", ["/etc/passwd", "cat.png", "-1"])
def test_a_negative_prompt_holds_no_image(folder, tag):
    with pytest.raises(PromptError, match="text only"):
        read_request(folder, "a cat", [], negative_prompt=f"<image:{tag}>")


def test_an_image_without_a_place_is_an_error(folder, two):
    with pytest.raises(PromptError, match=r"image 2 \(dog.png\) has no place"):
        read_request(folder, "<image:-1>", two)
    assert len(read_request(folder, "<image:-1>", two, all_used=False).images) == 1


def test_an_empty_prompt_is_an_error(folder):
    with pytest.raises(UsageError, match="empty"):
        read_request(folder, "  ", [])


def test_an_edit_is_the_image_then_the_instruction(folder, two):
    request = edit_request(folder, two[:1], "add a hat")
    assert request.prompt.format() == "<image:cat.png|fit=crop> add a hat"
    with pytest.raises(PromptError):
        edit_request(folder, two[:1], "copy <image:/etc/passwd>")
    with pytest.raises(UsageError, match="add the image"):
        edit_request(folder, [], "add a hat")
    with pytest.raises(UsageError, match="instruction is empty"):
        edit_request(folder, two[:1], " ")


def test_a_batch_is_one_prompt_a_line():
    assert read_lines(" a cat\n\n a dog \n") == ["a cat", "a dog"]
    for text, message in (("\n", "empty"), ("x\n" * (MAX_LINES + 1), "at most")):
        with pytest.raises(UsageError, match=message):
            read_lines(text)
