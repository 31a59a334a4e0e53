r"""The prompt grammar, and the encoding of interleaved text and images for training and inference.

a cat <image:cat.png> in Minecraft          an image anywhere, any number of them
<image:a.png><image:b.png|weight=0.8>       adjacent; options after a bar
a mug with <image:-1>                       the first image passed separately (--image)
3 \< 4, <image:odd\>name\|.png>             escape <, >, |, \ and spaces with a backslash
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from kgcli.errors import PromptError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from kgcli.data.tokenizer import Tokenizer

MAX_WEIGHT = 2.0
FITS = ("pad", "crop", "stretch")
MAX_CHARACTERS = 32_768  # of a prompt: models take 2,048 tokens of at most 16 characters
PLANNED_OPTIONS = ("mask",)  # reserved in the grammar, refused in this version
_OPEN = "<image:"
# Tags of other programs: `<i>` of the published code, `<img:..>`, `<lora:..>`.
_FOREIGN_TAG = re.compile(r"<\s*((?:i|img|image)\b|[a-z][a-z0-9_]*(?=:))(:[^<>\s]*)?", re.IGNORECASE)
# `<cat.png>`: a file name in place of a tag.
_FILE_TAG = re.compile(r"<\s*([^<>|\\:\n]{1,255}\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif|heic))\s*>", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SLOT = re.compile(r"-\d+")


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """One `<image:...>` of a prompt: a file's path, or the number of an image passed separately."""

    path: str = ""
    slot: int | None = None  # from 1; the path is then empty
    weight: float = 1.0  # 0 = image ignored, 1 = as is, 2 = image only, without the words
    fit: str = ""  # how an image becomes square: one of FITS; "" = the model's default
    column: int = field(default=1, compare=False)  # of the tag's `<`, from 1

    @property
    def name(self) -> str:
        """Base name of the file, or the slot's number."""
        return PurePath(self.path).name if self.slot is None else f"-{self.slot}"


@dataclass(frozen=True)
class Prompt:
    """Text and images in reading order."""

    parts: tuple[str | ImageRef, ...]
    text: str = field(default="", compare=False)  # as it was typed

    @classmethod
    def parse(cls, text: str) -> Prompt:
        """Read a prompt.

        Raises: PromptError with the column of the fault.
        """
        return cls(parts=tuple(_Parser(text).parts()), text=text)

    def format(self) -> str:
        """Return the prompt as text that parses to the same parts."""
        return "".join(_escape_text(part) if isinstance(part, str) else _format_ref(part) for part in self.parts)

    @property
    def fragments(self) -> list[str | None]:
        """The input of `encode`: text, and None for an image."""
        return [part if isinstance(part, str) else None for part in self.parts]

    @property
    def images(self) -> list[ImageRef]:
        """The images in reading order."""
        return [part for part in self.parts if isinstance(part, ImageRef)]

    def fill_slots(self, paths: SequenceOf[str]) -> Prompt:
        """Return the prompt with numbered slots replaced by paths, each of which must be used.

        Raises: PromptError for a slot without a path or a path without a slot.
        """
        for ref in self.images:
            if ref.slot is not None and ref.slot > len(paths):
                raise PromptError(
                    f"<image:-{ref.slot}> asks for image {ref.slot}, but {len(paths)} --image given",
                    column=ref.column,
                    prompt=self.text,
                )
        used = {ref.slot for ref in self.images}
        for number, path in enumerate(paths, start=1):
            if number not in used:
                raise PromptError(f"--image {path} has no place in the prompt: write <image:-{number}> there")
        filled = (
            replace(part, path=str(paths[part.slot - 1]), slot=None)
            if isinstance(part, ImageRef) and part.slot is not None
            else part
            for part in self.parts
        )
        return Prompt(parts=tuple(filled), text=self.text)


@dataclass(frozen=True)
class Sequence:
    """Token ids, and a mask that is True where an image embedding replaces the token."""

    token_ids: list[int]
    image_mask: list[bool]


def encode(fragments: SequenceOf[str | None], tokenizer: Tokenizer, num_slots: int = 64, eos: bool = False) -> Sequence:
    """Tokenize interleaved text (str) and images (None), each image taking `num_slots` + 2 positions.

    Each text is encoded on its own, so spaces at its ends are dropped. The model is fed one leading <s> and no </s>;
    `eos` adds the </s> that only a training target ends in.

    Source: KOSMOS-G (arXiv:2310.02992), the released prompt code.
    """
    ids = tokenizer.special_ids
    token_ids, image_mask = [ids.bos], [False]
    for fragment in fragments:
        if fragment is None:
            token_ids += [ids.boi] * (num_slots + 1) + [ids.eoi]
            image_mask += [False] + [True] * num_slots + [False]
        else:
            pieces = tokenizer.encode(fragment)
            token_ids += pieces
            image_mask += [False] * len(pieces)
    if eos:
        token_ids.append(ids.eos)
        image_mask.append(False)
    return Sequence(token_ids=token_ids, image_mask=image_mask)


def pad_sequences(rows: SequenceOf[Sequence], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, token mask and image mask, (rows, longest) each, padded on the right.

    The token mask is True for a real token, the image mask for the slot of an image.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tokens = pad_sequence([torch.tensor(row.token_ids) for row in rows], batch_first=True, padding_value=pad_id)
    image_mask = pad_sequence([torch.tensor(row.image_mask) for row in rows], batch_first=True)
    return tokens, tokens != pad_id, image_mask


def check_length(prompt: Prompt, sequence: Sequence, *, max_images: int, max_tokens: int) -> None:
    """Refuse a prompt with more images or tokens than the model takes.

    Raises: PromptError at the first image too many, or for the whole prompt.
    """
    images = prompt.images
    if len(images) > max_images:
        raise PromptError(
            f"{len(images)} images; the model takes at most {max_images}",
            column=images[max_images].column,
            prompt=prompt.text,
        )
    if len(sequence.token_ids) > max_tokens:
        raise PromptError(
            f"the prompt is {len(sequence.token_ids)} tokens long (an image counts as several); "
            f"the model takes at most {max_tokens}",
            column=1,
            prompt=prompt.text,
        )


class _Parser:
    """A one-pass parser of a prompt; `at` is the index of the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        if len(text) > MAX_CHARACTERS:
            raise PromptError(f"the prompt has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
        for index, character in enumerate(text):
            if character == "\0" or "\ud800" <= character <= "\udfff":
                raise self.error("this character is not text (a null character or broken UTF-8)", index)

    def error(self, message: str, index: int) -> PromptError:
        """Return a PromptError that points at an index."""
        return PromptError(printable(message), column=index + 1, prompt=self.text)

    def parts(self) -> list[str | ImageRef]:
        """Parse texts and images in turn, without empty texts."""
        parts: list[str | ImageRef] = []
        words: list[str] = []
        while self.at < len(self.text):
            if self.text.startswith(_OPEN, self.at):
                if words:
                    parts.append("".join(words))
                words = []
                parts.append(self.tag())
            else:
                words.append(self.character())
        return [*parts, "".join(words)] if words else parts

    def character(self) -> str:
        """Parse one character of plain text, its escape resolved."""
        if self.text[self.at] == "\\" and self.text[self.at + 1 : self.at + 2] in ("<", "\\"):
            self.at += 2
            return self.text[self.at - 1]
        if self.text[self.at] == "<":
            self.refuse_foreign_tag()
        self.at += 1
        return self.text[self.at - 1]

    def refuse_foreign_tag(self) -> None:
        """Refuse a tag of another program, naming what to write instead. Raises: PromptError."""
        if match := _FILE_TAG.match(self.text, self.at):
            raise self.error(f"`{match.group()}` is not a tag: write <image:{match.group(1)}>", self.at)
        if not (match := _FOREIGN_TAG.match(self.text, self.at)):
            return
        kind, given = match.group(1).lower(), (match.group(2) or "").lstrip(":")
        if kind in ("lora", "lyco", "hypernet"):
            name, _, scale = given.partition(":")
            advice = f"give --lora {name or 'FILE'}.safetensors" + (f":{scale}" if scale else "")
        elif given.startswith("//"):
            advice = "images are read from files, not from the web: download it and write <image:FILE>"
        else:
            advice = f"write <image:{given or 'PATH'}>"
        raise self.error(f"`{match.group()}>` is not a tag of this program: {advice}, or \\< for a plain <", self.at)

    def tag(self) -> ImageRef:
        """Parse `<image:PATH|options>`, from its `<`."""
        start = self.at
        self.at += len(_OPEN)
        path_at = self.at
        path, escaped_at_start = self.field(start, ends="|>")
        ref = self.target(path, escaped_at_start, start, path_at)
        if self.text[self.at] == "|":
            self.at += 1
            ref = self.options(ref, start)
        self.at += 1  # the `>`
        return ref

    def target(self, path: str, escaped: bool, start: int, path_at: int) -> ImageRef:
        """Parse the path or slot of a tag."""
        if not path:
            raise self.error("the image tag names no file: write <image:PATH>", path_at)
        if _URL.match(path):
            raise self.error("images are read from files, not from the web: download it, then name the file", path_at)
        if escaped or not _SLOT.fullmatch(path):
            return ImageRef(path=path, column=start + 1)
        if not path.isascii() or len(path) > 6 or int(path) == 0:
            raise self.error(f"`{path}` is not an image number: <image:-1> is the first --image", path_at)
        return ImageRef(slot=-int(path), column=start + 1)

    def field(self, start: int, ends: str) -> tuple[str, bool]:
        """Parse text up to an unescaped end, outer spaces removed; also tell if its start was escaped."""
        raw: list[tuple[str, bool]] = []
        while True:
            character = self.text[self.at : self.at + 1]
            if not character:
                raise self.error("this image tag is not closed: `>` is missing", start)
            following = self.text[self.at + 1 : self.at + 2]
            if character == "\\" and following and (following in "<>|\\ " or (following == "-" and not raw)):
                raw.append((following, True))
                self.at += 2
                continue
            if character in ends:
                break
            if character == "<":
                raise self.error("this image tag is not closed before the next `<` (write \\< in a path)", start)
            raw.append((character, False))
            self.at += 1
        first = next((at for at, one in enumerate(raw) if one != (" ", False)), len(raw))
        del raw[:first]
        while raw and raw[-1][0] == " " and not raw[-1][1]:
            raw.pop()
        return "".join(character for character, _ in raw), bool(raw) and raw[0][1]

    def options(self, ref: ImageRef, start: int) -> ImageRef:
        """Parse `name=value,...` up to the `>`."""
        seen: set[str] = set()
        while True:
            at = self.at
            option, _ = self.field(start, ends=",>")
            at += len(self.text[at : self.at]) - len(self.text[at : self.at].lstrip())
            name, equals, value = (piece.strip() for piece in option.partition("="))
            if name in seen:
                raise self.error(f"option `{name}` is given twice", at)
            seen.add(name)
            ref = replace(ref, **self.option(name, equals, value, at))  # type: ignore[arg-type]
            if self.text[self.at] == ">":
                return ref
            self.at += 1

    def option(self, name: str, equals: str, value: str, at: int) -> dict[str, object]:
        """Return the field of ImageRef that one option sets."""
        if name in PLANNED_OPTIONS:
            raise self.error(f"option `{name}` is not implemented in this version; leave it out", at)
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"the options are {', '.join(_OPTIONS)}"
            raise self.error(f"unknown image option `{name}`; {hint}", at)
        if not equals or not value:
            raise self.error(f"option `{name}` needs a value: {name}={_OPTIONS[name]}", at)
        if name == "fit":
            if value not in FITS:
                raise self.error(f"fit is `{value}`; it must be {', '.join(FITS[:-1])} or {FITS[-1]}", at)
            return {"fit": value}
        weight = _to_number(value)
        if not 0 <= weight <= MAX_WEIGHT:  # also refuses NaN
            raise self.error(f"weight is `{value}`; it must be a number from 0 to {MAX_WEIGHT:g}", at)
        return {"weight": weight}


_OPTIONS = {"weight": "0.8", "fit": "crop"}  # name -> an example value


def _to_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _escape_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("<", "\\<")


def _format_ref(ref: ImageRef) -> str:
    options = []
    if ref.weight != 1.0:
        options.append(f"weight={ref.weight!r}")
    if ref.fit:
        options.append(f"fit={ref.fit}")
    target = f"-{ref.slot}" if ref.slot is not None else _escape_path(ref.path)
    return f"{_OPEN}{target}{'|' if options else ''}{','.join(options)}>"


def _escape_path(path: str) -> str:
    escaped = re.sub(r"([<>|\\])", r"\\\1", path)
    escaped = re.sub(r"^ +| +$", lambda blanks: "\\ " * len(blanks.group()), escaped)
    return f"\\{escaped}" if escaped.startswith("-") else escaped
