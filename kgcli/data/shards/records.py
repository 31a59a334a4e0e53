"""Records of shards: what `{key}.json` says of a sample; images are members of the same tar, named by their suffix.

Text           {"kind": "text", "text": "a cat on the beach"}
Pair           {"kind": "pair", "image": "jpg", "caption": "a cat on the beach"}
Interleaved    {"kind": "interleaved", "fragments": ["A cat. ", {"image": "0.jpg"}, " It sleeps."]}
Compositional  {"kind": "compositional", "image": "jpg", "caption": "a cat on the beach",
                "entities": [{"noun": "cat", "span": [2, 5], "crop": "0.jpg", "crop_on_white": "1.jpg"}]}
Edit           {"kind": "edit", "before": "0.jpg", "after": "jpg", "instruction": "make it snow"}
Written        {"kind": "prompt", "prompt": "a <image:0.jpg> on the beach", "target": "jpg"}

The main image of a record, the one to be generated, is `{key}.jpg` (png, webp); the others are `{key}.0.jpg`,
`{key}.1.jpg` and so on.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from kgcli.data.prompt import Prompt
from kgcli.errors import MissingError, PromptError

MAX_RECORD_BYTES = 16 * 2**20  # of one JSON text
_IMAGE_MEMBER = re.compile(r"(?:\d{1,4}\.)?(?:jpg|png|webp)", re.ASCII)


def _check_image(name: str) -> str:
    if not _IMAGE_MEMBER.fullmatch(name):
        raise ValueError(f"{name[:40]!r} is no image of a record: jpg, png or webp, with a number and a dot before it")
    return name


ImageMember = Annotated[str, AfterValidator(_check_image)]  # the suffix of a member: "jpg", "0.png"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Record(_Strict):
    origin: str = ""  # file and line, or address, that the sample was imported from

    @property
    def main_image(self) -> str | None:
        """The member of the image to be generated, None without one."""
        return None

    @property
    def images(self) -> tuple[str, ...]:
        """All members that the record names, in reading order, without repetition."""
        return ()

    @property
    def words(self) -> str:
        """All that the record says in words, for counting, searching and filtering."""
        return ""


class Text(_Record):
    """Text alone; `caption` is what a CLIP text encoder reads where it differs from the text."""

    kind: Literal["text"] = "text"
    text: str
    caption: str | None = None

    @property
    def words(self) -> str:
        """The text."""
        return self.text


class Pair(_Record):
    """An image with its caption."""

    kind: Literal["pair"] = "pair"
    image: ImageMember
    caption: str
    masks: tuple[ImageMember, ...] = ()  # of the subjects of the image

    @property
    def main_image(self) -> str | None:
        """The image."""
        return self.image

    @property
    def images(self) -> tuple[str, ...]:
        """The image and its masks."""
        return _unique(self.image, *self.masks)

    @property
    def words(self) -> str:
        """The caption."""
        return self.caption


class Shown(_Strict):
    """An image among the fragments of a document."""

    image: ImageMember


class Interleaved(_Record):
    """A document of texts and images in reading order."""

    kind: Literal["interleaved"] = "interleaved"
    fragments: tuple[str | Shown, ...] = Field(min_length=1)

    @property
    def images(self) -> tuple[str, ...]:
        """The images in reading order."""
        return _unique(*(part.image for part in self.fragments if isinstance(part, Shown)))

    @property
    def words(self) -> str:
        """The texts, one after the other."""
        return "".join(part for part in self.fragments if isinstance(part, str))


class Entity(_Strict):
    """A thing that a caption names: the characters of its noun, and its image cut out with its background.

    It also has its image on white, or a mask in the size of the whole image.
    """

    noun: str = Field(min_length=1)
    span: tuple[int, int]  # first character of the noun in the caption, and the one after its last
    crop: ImageMember
    crop_on_white: ImageMember | None = None
    mask: ImageMember | None = None

    @model_validator(mode="after")
    def _has_one_of_both(self) -> Entity:
        if self.crop_on_white is None and self.mask is None:
            raise ValueError(f"entity {self.noun!r} has neither crop_on_white nor mask")
        return self


class Compositional(_Record):
    """A captioned image with an image of each entity of the caption."""

    kind: Literal["compositional"] = "compositional"
    image: ImageMember
    caption: str = Field(min_length=1)
    entities: tuple[Entity, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _spans_fit(self) -> Compositional:
        end = 0
        for entity in self.entities:
            start, stop = entity.span
            if not end <= start < stop <= len(self.caption):
                raise ValueError(f"the span {start}:{stop} of {entity.noun!r} is out of order or outside the caption")
            end = stop
        return self

    @property
    def main_image(self) -> str | None:
        """The image of the whole caption."""
        return self.image

    @property
    def images(self) -> tuple[str, ...]:
        """The image, then crops and masks by entity."""
        parts = [part for one in self.entities for part in (one.crop, one.crop_on_white, one.mask) if part]
        return _unique(self.image, *parts)

    @property
    def words(self) -> str:
        """The caption."""
        return self.caption


class Edit(_Record):
    """An image before and after an edit; `caption` describes the one before."""

    kind: Literal["edit"] = "edit"
    before: ImageMember
    after: ImageMember
    instruction: str = Field(min_length=1)
    caption: str | None = None
    masks: tuple[ImageMember, ...] = ()  # of the subjects of `after`

    @property
    def main_image(self) -> str | None:
        """The image after the edit."""
        return self.after

    @property
    def images(self) -> tuple[str, ...]:
        """Before, after, masks."""
        return _unique(self.before, self.after, *self.masks)

    @property
    def words(self) -> str:
        """Caption and instruction."""
        return f"{self.caption or ''} {self.instruction}".strip()


class Written(_Record):
    """A prompt in the grammar of `kg generate`, its images named by member, and the image to be generated.

    `caption` is what a CLIP text encoder reads, `masks` are of the subjects of the target.
    """

    kind: Literal["prompt"] = "prompt"
    prompt: str
    target: ImageMember | None = None
    caption: str = ""
    masks: tuple[ImageMember, ...] = ()

    @model_validator(mode="after")
    def _prompt_parses(self) -> Written:
        for ref in self.parsed().images:
            _check_image(ref.path)
            if ref.weight != 1.0:
                raise ValueError(f"training data cannot use weight={ref.weight:g}: leave it out")
        return self

    def parsed(self) -> Prompt:
        """Return the prompt as texts and images. Raises: ValueError."""
        try:
            return Prompt.parse(self.prompt)
        except PromptError as error:
            raise ValueError(f"column {error.column} of the prompt: {error}") from None

    @property
    def main_image(self) -> str | None:
        """The target."""
        return self.target

    @property
    def images(self) -> tuple[str, ...]:
        """The target, the images of the prompt in reading order, the masks."""
        shown = [ref.path for ref in self.parsed().images]
        return _unique(*([self.target] if self.target else []), *shown, *self.masks)

    @property
    def words(self) -> str:
        """The texts of the prompt."""
        return "".join(part for part in self.parsed().parts if isinstance(part, str))


Record = Text | Pair | Interleaved | Compositional | Edit | Written
KINDS = ("text", "pair", "interleaved", "compositional", "edit", "prompt")
_ANY: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def record_of(value: Any, name: str) -> Record:
    """Return the record of a JSON value; `name` is for messages. Raises: MissingError that names the first fault."""
    try:
        return _ANY.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"] if step not in KINDS)
        message = first["msg"].removeprefix("Value error, ")
        raise MissingError(f"{name}{': ' if where else ''}{where}: {message}") from None


def dump_record(record: Record) -> bytes:
    """Return the bytes of a record's `.json` member, equal for equal records; fields at their defaults are left out."""
    value = {"kind": record.kind, **record.model_dump(mode="json", exclude_defaults=True)}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _unique(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
