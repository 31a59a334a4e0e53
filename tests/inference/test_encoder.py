"""Laws of reading prompts: padding and batches change nothing, and nothing is computed twice."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from kgcli.data.prompt import Prompt
from kgcli.errors import ImageError, PromptError, UsageError
from kgcli.inference.pipeline import KosmosGPipeline

RED, BLUE = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (12, 30), "blue")


@pytest.fixture
def pipeline(tiny_model):
    return KosmosGPipeline.from_pretrained(tiny_model)


@pytest.fixture
def rows_of(pipeline, monkeypatch):
    """Number of rows in each call of a part of the model."""
    seen = {"vision": [], "mllm": []}
    for name, counts in seen.items():
        part = getattr(pipeline.model, name)
        forward = part.forward
        monkeypatch.setattr(part, "forward", lambda x, *a, f=forward, c=counts: c.append(len(x)) or f(x, *a))
    return seen


def embeds_of(pipeline, text, *images, negative=""):
    return pipeline.encode_prompt([Prompt.parse(text)], [list(images)], [negative])


def test_fit_sets_how_an_image_becomes_square(pipeline):
    padded, plain, cropped = (embeds_of(pipeline, f"<image:x{o}>", BLUE)[0] for o in ("|fit=pad", "", "|fit=crop"))
    assert torch.equal(padded, plain) and not torch.equal(padded, cropped)


def test_an_image_that_occurs_often_is_seen_once(pipeline, monkeypatch):
    seen = []
    forward = pipeline.model.vision.forward
    monkeypatch.setattr(pipeline.model.vision, "forward", lambda images: seen.append(len(images)) or forward(images))
    pipeline.encode_prompt([Prompt.parse("<image:x><image:x>"), Prompt.parse("<image:x>")], [[RED, RED], [RED]])
    assert seen == [1]


def test_images_must_match_the_prompts_images(pipeline):
    with pytest.raises(UsageError, match="1 image"):
        pipeline.encode_prompt([Prompt.parse("a <image:x>")], [[]])


def test_an_image_is_known_by_its_content(pipeline, rows_of):
    pipeline.encode_prompt("a <image>", RED)
    again = pipeline.encode_prompt("the <image|weight=0.5>", Image.new("RGB", (20, 20), "red"))[0]
    assert rows_of["vision"] == [1]
    # A freed image's id may come again with another content.
    other = pipeline.encode_prompt("the <image|weight=0.5>", Image.new("RGB", (20, 20), "blue"))[0]
    assert rows_of["vision"] == [1, 1] and not torch.equal(again, other)


def test_the_null_branch_runs_once_per_model_and_a_prompt_once_per_call(pipeline, rows_of):
    first = pipeline.encode_prompt(["a cat", "a dog", "a cat"], num_images_per_prompt=4)
    assert rows_of["mllm"] == [2, 1]  # two prompts in one batch, then the start token
    assert [len(rows) for rows in first] == [12, 12]
    assert torch.equal(first[0][0], first[0][3]) and torch.equal(first[0][:4], first[0][8:])
    pipeline.encode_prompt("a car")
    assert rows_of["mllm"] == [2, 1, 1]
    pipeline("a car", generator=torch.Generator().manual_seed(1), num_inference_steps=1, num_images_per_prompt=2)
    assert rows_of["mllm"] == [2, 1, 1, 1]


def test_what_was_kept_is_forgotten_with_the_weights(pipeline):
    before = pipeline.encode_prompt("a <image>", RED)
    with torch.no_grad():
        pipeline.model.mllm.embedding.weight.add_(1.0)
    pipeline.encoder.forget()
    assert not any(torch.equal(*pair) for pair in zip(before, pipeline.encode_prompt("a <image>", RED), strict=True))


def test_padding_changes_nothing(pipeline):
    """Rows of any lengths beside a prompt, in any order, leave its embeddings alone."""
    texts = ["a", "a <image> in the snow " + "and a cat " * 5, "<image><image>", ""]
    images = [None, [RED], [BLUE, RED], None]
    negatives = ["", "low quality " * 5, "a", "low quality"]
    together = pipeline.encode_prompt(texts, images, negatives)
    backwards = pipeline.encode_prompt(texts[::-1], images[::-1], negatives[::-1])
    for row, (text, given, negative) in enumerate(zip(texts, images, negatives, strict=True)):
        alone = pipeline.encode_prompt(text, given, negative)
        for batch, other, single in zip(together, backwards, alone, strict=True):
            torch.testing.assert_close(batch[row], single[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(other[-1 - row], single[0], rtol=1e-4, atol=1e-5)


def test_slots_and_tags_and_numbers_are_equivalent(pipeline, tmp_path):
    RED.save(tmp_path / "red.png")
    BLUE.save(tmp_path / "blue.png")
    wanted = pipeline.encode_prompt("a <image> and a <image|fit=crop>", [RED, BLUE])[0]
    spellings = [
        (f"a <image:{tmp_path}/red.png> and a <image:{tmp_path}/blue.png|fit=crop>", None),
        ("a <image:-2> and a <image:-1|fit=crop>", [BLUE, RED]),
        ("a <i> and a <i|fit=crop>", [tmp_path / "red.png", str(tmp_path / "blue.png")]),
        (f"a <image:{tmp_path}/red.png> and a <image:-1|fit=crop>", [BLUE.convert("RGBA")]),
        (Prompt.parse("a <image:x> and a <image:y|fit=crop>"), [RED, BLUE]),
    ]
    for text, images in spellings:
        assert torch.equal(pipeline.encode_prompt(text, images)[0], wanted), text
    literal = pipeline.encode_prompt("a \\\\<image>", RED)[0]  # an escaped backslash, then a slot
    assert torch.equal(literal, pipeline.encode_prompt("a \\\\<image:-1>", RED)[0])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("a <image>",), UsageError, "asks for image 1, but 0"),
        (("a <image>", [RED, BLUE]), UsageError, "image 2 has no place"),
        (("a <image> <image:-1>", RED), PromptError, "number all of them or none"),
        (("a <image:gone.png>",), ImageError, "there is no image gone.png"),
        ((["a", "b"], [None]), UsageError, "2 prompts but 1 entries"),
        ((["a", "b"], None, ["x", "y", "z"]), UsageError, "3 negative prompts"),
        (("a", None, "<image:cat.png>"), PromptError, "text only"),
        (([],), UsageError, "the list is empty"),
        ((3,), (UsageError, TypeError), "is"),
        (("a <image>", 3), UsageError, "PIL.Image"),
        (("<image>" * 4, [RED] * 4), PromptError, "at most 3"),
        (("cat " * 80,), PromptError, "tokens long"),
    ],
)
def test_what_cannot_be_read_is_named(pipeline, arguments, error, words):
    with pytest.raises(error, match=words):
        pipeline.encode_prompt(*arguments)


def test_a_negative_prompt_is_its_own_row(pipeline):
    _, rows = pipeline.encode_prompt(["a", "b", "c"], negative_prompt=["", "low quality", "a car"])
    _, all_alike = pipeline.encode_prompt(["a", "b"], negative_prompt="a car")
    assert len({row.numpy().tobytes() for row in rows}) == 3
    assert torch.equal(all_alike[0], rows[2]) and torch.equal(all_alike[1], rows[2])
    with torch.no_grad():
        assert torch.equal(rows[:1], pipeline.model.encode_null())
