"""Laws of a prompt's parts: references and words, each left out cleanly."""

from kgcli.data.prompt import Prompt
from kgcli.inference.explain.parts import MAX_WORDS, parts_of


def without(text, **options):
    return [(part.label, part.image, part.without.format()) for part in parts_of(Prompt.parse(text), **options)]


def test_references_come_first_then_words_in_order():
    assert without("a <image:x/cat.png> and <image:dog.png> in snow") == [
        ("cat.png", 1, "a and <image:dog.png> in snow"),
        ("dog.png", 2, "a <image:x/cat.png> and in snow"),
        ("a", None, "<image:x/cat.png> and <image:dog.png> in snow"),
        ("and", None, "a <image:x/cat.png><image:dog.png> in snow"),
        ("in", None, "a <image:x/cat.png> and <image:dog.png> snow"),
        ("snow", None, "a <image:x/cat.png> and <image:dog.png> in "),
    ]


def test_the_images_that_stay_are_named_by_index():
    parts = parts_of(Prompt.parse("<image:a.png><image:b.png><image:c.png>"), words=False)
    assert [part.images for part in parts] == [(1, 2), (0, 2), (0, 1)]


def test_a_prompt_of_one_part_becomes_empty():
    assert without("<image:a.png>") == [("a.png", 1, "")]
    assert without("snow") == [("snow", None, "")]
    assert without("...") == []


def test_words_are_words():
    assert [label for label, *_ in without("it's a well-known, 2nd 'cat'!")] == [
        "it's",
        "a",
        "well-known",
        "2nd",
        "cat",
    ]
    assert without("a cat", words=False) == []
    assert len(without("x " * 99)) == MAX_WORDS
