"""EXIF comments of other programs, in every encoding that they take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgcli.inference.user_comment import decode_comment, encode_comment

TEXT = "a \u732b in the snow, (best:1.2)\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 5"


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + TEXT.encode("utf-16-be"),
        b"UNICODE\0" + TEXT.encode("utf-16-le"),
        b"UNICODE\0\xff\xfe" + TEXT.encode("utf-16-le"),
        b"UNICODE\0\xfe\xff" + TEXT.encode("utf-16-be"),
        b"UNICODE\0" + TEXT.encode(),
        b"UNICODE\0\xef\xbb\xbf" + TEXT.encode(),
        b"\0" * 8 + TEXT.encode(),
        b"ASCII\0\0\0" + TEXT.encode(),
        TEXT.encode(),
        TEXT.encode() + b"\0\0",
    ],
)
def test_every_encoding_is_read(comment):
    assert decode_comment(comment) == TEXT


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le"])
def test_text_without_any_ascii_is_read_in_the_order_that_makes_text_of_it(encoding):
    text = "\u96ea\u306e\u4e2d\u306e\u732b\u3068\u72ac"
    assert decode_comment(b"UNICODE\0" + text.encode(encoding)) == text


def test_nothing_is_no_text():
    assert decode_comment(b"") is None and decode_comment(b"UNICODE\0") is None


@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1))
def test_what_we_write_we_read(text):
    assert decode_comment(encode_comment(text)) == text


@given(st.binary(max_size=64))
def test_any_bytes_are_read_without_an_error(comment):
    assert isinstance(decode_comment(comment), str | None)
