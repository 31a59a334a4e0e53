"""The prompt grammar: what parses, what is refused and where the column points; the one encoder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgcli.data.prompt import ImageRef, Prompt, check_length, encode
from kgcli.data.tokenizer import train_sentencepiece
from kgcli.errors import PromptError

CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
PATHS = st.text(CHARACTERS, min_size=1, max_size=20)
REFS = st.builds(
    ImageRef, path=PATHS, weight=st.floats(0, 2), fit=st.sampled_from(["", "pad", "crop", "stretch"])
) | st.builds(ImageRef, slot=st.integers(1, 99), weight=st.just(1.0))
TEXTS = st.text(CHARACTERS, min_size=1, max_size=20)


@st.composite
def prompts(draw):
    """Parts without two texts in a row."""
    parts = []
    for ref in draw(st.lists(st.none() | REFS, max_size=6)):
        if ref is not None:
            parts.append(ref)
        elif not parts or isinstance(parts[-1], ImageRef):
            parts.append(draw(TEXTS))
    return Prompt(parts=tuple(parts))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    captions = ["a cat in Minecraft", "a dog on the beach", "two red cars"] * 20
    return train_sentencepiece(captions, 50, tmp_path_factory.mktemp("tokenizer"))


@given(prompts())
def test_formatted_parts_parse_to_the_same_parts(prompt):
    assert Prompt.parse(prompt.format()) == prompt


@given(st.text(alphabet="<image:>|=,\\-1 cat.pngweightfit0.8\0\ud800\u732b", max_size=60) | st.text())
def test_no_input_crashes_the_parser(text):
    try:
        prompt = Prompt.parse(text)
    except PromptError as error:
        assert 1 <= error.column <= len(text) + 1
        assert error.prompt == text
    else:
        assert Prompt.parse(prompt.format()) == prompt


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("a cat", ["a cat"]),
        ("", []),
        ("<image:a.png> x", [None, " x"]),
        ("x <image:a.png>", ["x ", None]),
        ("<image:a.png><image:b.png>", [None, None]),
        ("a <image:a.png>'s hat on <image:b.png>.", ["a ", None, "'s hat on ", None, "."]),
        ("3 < 4 and <3", ["3 < 4 and <3"]),
        (r"a \<image:a.png>", ["a <image:a.png>"]),
        ("in <ink>", ["in <ink>"]),
    ],
)
def test_images_stand_anywhere(text, fragments):
    assert Prompt.parse(text).fragments == fragments


@pytest.mark.parametrize(
    ("tag", "path"),
    [
        ("<image:my cat.png>", "my cat.png"),
        ("<image: cat.png >", "cat.png"),
        (r"<image:\ cat.png\ >", " cat.png "),
        ("<image:\u732b/\u00e9.png>", "\u732b/\u00e9.png"),
        (r"<image:a\>b\|c\<d\\e.png>", r"a>b|c<d\e.png"),
        (r"<image:C:\cats\one.png>", r"C:\cats\one.png"),
        (r"<image:\-1>", "-1"),
        ("<image:a,b=c.png>", "a,b=c.png"),
    ],
)
def test_paths_may_hold_any_character(tag, path):
    assert Prompt.parse(tag).images == [ImageRef(path=path)]


def test_options_are_read_by_name():
    assert Prompt.parse("<image:a.png|weight=0.8, fit=crop>").images == [ImageRef(path="a.png", weight=0.8, fit="crop")]


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("a <image:cat.png", 3, "not closed"),
        ("a <image:cat.png b <image:d.png>", 3, "not closed before"),
        ("<image:>", 8, "names no file"),
        ("<image:cat.png|wieght=1>", 16, "did you mean `weight`"),
        ("<image:cat.png|zoom=1>", 16, "options are weight, fit"),
        ("<image:cat.png|mask=auto>", 16, "not implemented"),
        ("<image:cat.png|weight=1, mask=auto>", 26, "not implemented"),
        ("<image:cat.png|weight>", 16, "needs a value"),
        ("<image:cat.png|weight=9>", 16, "from 0 to 2"),
        ("<image:cat.png|weight=nan>", 16, "from 0 to 2"),
        ("<image:cat.png|fit=zoom>", 16, "pad, crop or stretch"),
        ("<image:cat.png|weight=1,weight=1>", 25, "twice"),
        ("<image:-0>", 8, "-1"),
        ("a <i> b", 3, "write <image:PATH>"),
        ("a <img:cat.png>", 3, "write <image:cat.png>"),
        ("a <cat.png>", 3, "write <image:cat.png>"),
        ("a <https://x.org/cat.png>", 3, "not from the web"),
        ("a <\nimg:cat.png>", 3, "write <image:cat.png>"),
        ("a cat <lora:comic:0.7>", 7, "give --lora comic.safetensors:0.7"),
        ("a <image:https://x.org/cat.png>", 10, "not from the web"),
        ("x" * 40_000, None, "40,000 characters"),
        ("\u732b <lora:x:1>", 3, "<lora:x:1>"),
        ("a \0", 3, "null"),
    ],
)
def test_errors_point_at_the_column(text, column, words):
    with pytest.raises(PromptError) as caught:
        Prompt.parse(text)
    assert caught.value.column == column
    assert words in str(caught.value)


def test_numbered_slots_take_the_given_images():
    prompt = Prompt.parse("<image:-2> and <image:-1|weight=0.5>").fill_slots(["a.png", "b.png"])
    assert prompt.images == [ImageRef(path="b.png"), ImageRef(path="a.png", weight=0.5)]


def test_a_slot_without_an_image_is_an_error():
    with pytest.raises(PromptError, match="image 2, but 1 --image") as caught:
        Prompt.parse("a <image:-2>").fill_slots(["a.png"])
    assert caught.value.column == 3


def test_an_image_without_a_slot_is_an_error():
    with pytest.raises(PromptError, match="no place in the prompt"):
        Prompt.parse("a cat").fill_slots(["a.png"])


def test_an_image_takes_its_slots_and_two_more_positions(tokenizer):
    ids = tokenizer.special_ids
    sequence = encode(["a cat", None, "in"], tokenizer, num_slots=3)
    image = [ids.boi] * 4 + [ids.eoi]
    assert sequence.token_ids == [0, *tokenizer.encode("a cat"), *image, *tokenizer.encode("in")]
    masked = [i for i, inside in enumerate(sequence.image_mask) if inside]
    first = 1 + len(tokenizer.encode("a cat")) + 1
    assert masked == [first, first + 1, first + 2]


def test_only_a_training_target_ends_in_eos(tokenizer):
    assert encode([], tokenizer).token_ids == [0]
    assert encode(["a cat"], tokenizer, eos=True).token_ids == [*encode(["a cat"], tokenizer).token_ids, 2]


def test_too_many_images_or_tokens_are_refused(tokenizer):
    prompt = Prompt.parse("<image:a><image:b>")
    sequence = encode(prompt.fragments, tokenizer, num_slots=3)
    check_length(prompt, sequence, max_images=2, max_tokens=11)
    with pytest.raises(PromptError, match="at most 1") as caught:
        check_length(prompt, sequence, max_images=1, max_tokens=11)
    assert caught.value.column == 10
    with pytest.raises(PromptError, match="11 tokens long"):
        check_length(prompt, sequence, max_images=2, max_tokens=10)
