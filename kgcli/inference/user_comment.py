"""Text in EXIF's UserComment: eight bytes that name an encoding, then the text, in a program-dependent encoding.

The standard's UNICODE is UTF-16 in the byte order of the file; programs write either order, with or without a mark, and
some write UTF-8 after the same eight bytes. We write UTF-16 BE without a mark, as the web UI does.
"""

from __future__ import annotations

import codecs

UNICODE = b"UNICODE\0"
ASCII = b"ASCII\0\0\0"
_CODES = {UNICODE, ASCII, b"JIS\0\0\0\0\0", b"\0" * 8}
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def encode_comment(text: str) -> bytes:
    """Return a UserComment of a text."""
    return UNICODE + text.encode("utf-16-be", "surrogatepass")


def decode_comment(comment: bytes) -> str | None:
    """Return the text of a UserComment, None where there is none."""
    code = comment[:8] if comment[:8] in _CODES else b""
    data = comment[len(code) :]
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace").rstrip("\0") or None
    encoding = "utf-8" if code in (ASCII, b"") else _guess(data)
    return data.decode(encoding, "replace").strip("\0") or None


def _guess(data: bytes) -> str:
    """Guess the encoding of bytes without a mark: the one with most ASCII characters."""
    big = sum(high == 0 and low != 0 for high, low in zip(data[0::2], data[1::2], strict=False))
    little = sum(low != 0 and high == 0 for low, high in zip(data[0::2], data[1::2], strict=False))
    if big != little:
        return "utf-16-be" if big > little else "utf-16-le"
    try:
        data.decode("utf-8", "strict")
        return "utf-8"
    except UnicodeDecodeError:
        return min(("utf-16-be", "utf-16-le"), key=lambda encoding: _num_strange(data, encoding))


def _num_strange(data: bytes, encoding: str) -> int:
    """Count unprintable characters: unassigned ones, controls and broken pairs."""
    text = data[: len(data) // 2 * 2].decode(encoding, "replace")
    return sum(not character.isprintable() or character == "\ufffd" for character in text)
