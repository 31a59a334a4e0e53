"""A user's own files: plain text, captioned image folders, tables of images, and prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from kgcli.data.entries import data_files
from kgcli.data.folders import read_below
from kgcli.data.images import MAX_BYTES, SUFFIXES
from kgcli.data.importers.base import Filled, ImportOptions, Item, broken, existing, files_of, pair_of, size_of
from kgcli.data.prompt import ImageRef, Prompt
from kgcli.data.shards.records import Text, Written
from kgcli.data.shards.write import as_member
from kgcli.data.sources.tables import BadLine, Line, walk_lines
from kgcli.data.textfiles import TABLES, read_columns, read_entries
from kgcli.errors import KgError, MissingError, PromptError
from kgcli.reading import read_bytes, read_text

CAPTIONS = (".txt", ".caption")
MAX_TEXT_BYTES = 4 * 2**30


class PlainText:
    """Texts: one a line of .txt, .csv or .jsonl files."""

    name = "text"
    layout = "text files: a text a line (.txt), or the column text or caption (.jsonl, .csv, .tsv, .json)"
    uses = frozenset({"columns", "where"})

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the texts."""
        suffixes = (".txt", ".jsonl", ".json", ".csv", ".tsv")
        read = partial(_read_text, column=options.columns.get("text"))
        paths = files_of(existing(source, what="file or folder"), suffixes, what="texts")
        options.check_columns((row for path in paths for row in _columns_of(path, _texts)), source)
        for path in paths:
            for line in _texts(path):
                if isinstance(line, BadLine):
                    yield broken(line.origin, line.fault)
                    continue
                size = sum(len(str(one)) for one in line.values.values())
                yield Item(line.origin, partial(_read_checked, line, read, options), size)


def _texts(path: Path) -> Iterator[Line | BadLine]:
    """Yield the texts of a file; one that cannot be read at all is a single bad line."""
    try:
        for place, value in read_entries(str(path), max_bytes=MAX_TEXT_BYTES):
            origin = f"{path.name} {place}"
            if isinstance(value, KgError):
                yield BadLine(origin, MissingError(f"{origin}: {value}"))
            else:
                yield Line(origin, value if isinstance(value, dict) else {"text": value})
    except MissingError as error:
        yield BadLine(path.name, error)


class CaptionedFolder:
    """Images of a folder tree, each with its caption in a file of its name beside it, as kohya's scripts do."""

    name = "folder"
    layout = "folder of images, each with its caption in a .txt or .caption file beside it"
    uses: frozenset[str] = frozenset()

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the images by path."""
        folder = existing(source, what="folder")
        if not folder.is_dir():
            raise MissingError(f"{folder} is a file; give the folder it is in")
        images = list(data_files(folder, suffixes=SUFFIXES, recursive=True))
        if not images:
            raise MissingError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
        for path in images:
            yield Item(path.relative_to(folder).as_posix(), partial(_read_beside, path, folder), size_of(path))


class Table:
    """Images and captions by line: columns image (file_name, path) and caption (text), paths relative to the file."""

    name = "table"
    layout = "table of image paths and captions (.csv, .tsv, .jsonl, .json, .parquet)"
    uses = frozenset({"images", "columns", "where"})

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the lines."""
        path = existing(source, what="file")
        named = [[options.columns[one]] if one in options.columns else names for one, names in _COLUMNS.items()]
        yield from _items_of(path, partial(_read_line, folder=options.images or path.parent, columns=named), options)


class Prompts:
    """Prompts in the grammar of `kg generate` with the image to be generated: columns prompt and target."""

    name = "prompts"
    layout = 'lines {"prompt": "a <image:a.png> on <image:b.png>", "target": "c.png"} (.jsonl, .csv, .parquet)'
    uses = frozenset({"images", "where"})

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the lines."""
        path = existing(source, what="file")
        yield from _items_of(path, partial(_read_prompt, folder=options.images or path.parent), options)


_COLUMNS = {"image": ["image", "file_name", "path"], "caption": ["caption", "text"]}


def _items_of(path: Path, read: Callable[[Line], Iterable[Filled]], options: ImportOptions) -> Iterator[Item]:
    options.check_columns(_columns_of(path, walk_lines), path.name)
    for line in walk_lines(path):
        if isinstance(line, BadLine):
            yield broken(line.origin, line.fault)
        else:
            yield Item(line.origin, partial(_read_checked, line, read, options))


def _columns_of(path: Path, walk: Callable[[Path], Iterator[Line | BadLine]]) -> Iterator[Collection[str]]:
    """Yield the columns of a table, of a parquet file by its first row, or of each line of another file."""
    suffix = path.suffix.lower()
    if suffix in TABLES:
        if columns := read_columns(path):
            yield columns
        return
    lines = islice(walk(path), 1) if suffix == ".parquet" else walk(path)
    yield from (line.values for line in lines if isinstance(line, Line))


def _read_checked(line: Line, read: Callable[[Line], Iterable[Filled]], options: ImportOptions) -> Iterable[Filled]:
    options.check(line.values)
    return read(line)


def _read_text(line: Line, column: str | None) -> Iterable[Filled]:
    return [(Text(text=line.text(*([column] if column else ["text", "caption"])), origin=line.origin), {})]


def _read_beside(path: Path, folder: Path) -> Iterable[Filled]:
    name = path.relative_to(folder).as_posix()
    found = next((p for suffix in CAPTIONS if (p := path.with_suffix(suffix)).is_file()), None)
    if found is None:
        raise MissingError(f"{name} has no caption: write it into {path.with_suffix('.txt').name}")
    caption = " ".join(read_text(found, max_bytes=2**20).split())
    return [pair_of(read_bytes(path, max_bytes=MAX_BYTES), caption, name)]


def _read_line(line: Line, folder: Path, columns: list[list[str]]) -> Iterable[Filled]:
    image, caption = line.text(*columns[0]), line.text(*columns[1])
    return [pair_of(read_below(folder, image, line.origin), caption, line.origin)]


def _read_prompt(line: Line, folder: Path) -> Iterable[Filled]:
    try:
        prompt = Prompt.parse(line.text("prompt"))
    except PromptError as error:
        raise PromptError(f"{line.origin}, column {error.column} of the prompt: {error}") from None
    images: dict[str, bytes] = {}
    parts: list[str | ImageRef] = []
    for part in prompt.parts:
        if isinstance(part, ImageRef):
            if part.slot is not None or part.weight != 1.0:
                raise PromptError(f"{line.origin}: training data cannot use <image:-1> or weight=")
            suffix, data = as_member(read_below(folder, part.path, line.origin), f"{line.origin}, {part.path}")
            part = ImageRef(path=f"{len(images)}.{suffix}", fit=part.fit)
            images[part.path] = data
        parts.append(part)
    target = None
    if "target" in line.values:
        target, data = as_member(read_below(folder, line.text("target"), line.origin), line.origin)
        images[target] = data
    return [(Written(prompt=Prompt(tuple(parts)).format(), target=target, origin=line.origin), images)]
