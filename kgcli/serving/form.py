"""The parts of a multipart/form-data body.

Source: RFC 7578; the headers of a part are parsed by the standard library's e-mail parser.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser

from kgcli.errors import UsageError

MAX_PARTS = 64
MAX_HEADER = 8 * 2**10  # bytes of the headers of a part


@dataclass(frozen=True)
class Part:
    """One field of a form: a text, or a file if it has a file name."""

    name: str
    data: bytes
    is_file: bool

    @property
    def text(self) -> str:
        """The text of a field.

        Raises: UsageError.
        """
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"the field {self.name} is not UTF-8 text") from None


def parse_form(content_type: str, body: bytes) -> list[Part]:
    """Return the parts of a body.

    Raises: UsageError.

    Example:
        >>> body = b'--x\\r\\nContent-Disposition: form-data; name="prompt"\\r\\n\\r\\na cat\\r\\n--x--\\r\\n'
        >>> parse_form("multipart/form-data; boundary=x", body)[0].text
        'a cat'
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/form-data" or not boundary:
        raise UsageError("the body must be multipart/form-data with a boundary")
    # The first delimiter may open the body, all others follow a line end that belongs to them.
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"))
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise UsageError("the form is cut short: its last boundary is missing")
    if len(pieces) - 2 > MAX_PARTS:
        raise UsageError(f"the form has {len(pieces) - 2} parts; at most {MAX_PARTS} are read")
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> Part:
    """Parse what stands between two delimiters: the rest of the delimiter's line, headers, an empty line, data."""
    padding, line_end, rest = piece.partition(b"\r\n")
    head, empty, data = (b"\r\n" + rest).partition(b"\r\n\r\n")
    if padding.strip(b" \t") or not line_end or not empty or len(head) > MAX_HEADER:
        raise UsageError("a part of the form is damaged: it has no headers of its own")
    headers = BytesHeaderParser().parsebytes(head.lstrip() + b"\r\n\r\n")
    name = headers.get_param("name", header="content-disposition")
    if headers.get_content_disposition() != "form-data" or not isinstance(name, str):
        raise UsageError("a part of the form has no name")
    return Part(name=name, data=data, is_file=headers.get_filename() is not None)
