"""Writing of shards: the same rows give the same bytes, and a shard is there whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from kgcli.data.images import decode_image
from kgcli.data.shards.layout import (
    CARD,
    DATASET,
    NOTES,
    Dataset,
    ShardEntry,
    check_key,
    index_path,
    index_schema,
    pyarrow_parts,
    shard_name,
)
from kgcli.data.shards.records import Record, dump_record
from kgcli.errors import UsageError
from kgcli.files import make_folder, sha256, whole_file, write_whole
from kgcli.version import __version__

MAX_ROWS = 1000  # of a shard
MAX_BYTES = 512 * 2**20  # of a shard, before the row that passes it
BLOCK = 512  # bytes of a tar
_SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_FORMAT = {suffix: name for name, suffix in _SUFFIX.items()}


@dataclass(frozen=True)
class Row:
    """A record under its key, with the bytes of the image files it names by member."""

    key: str
    record: Record
    images: Mapping[str, bytes] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    num_tokens: int = 0

    def members(self) -> dict[str, bytes]:
        """Return the files of the row by suffix, the JSON first. Raises: UsageError for a record without its image."""
        named = self.record.images
        if set(named) != set(self.images):
            odd = sorted(set(named) ^ set(self.images))[0]
            what = "names the image" if odd in named else "does not name the image"
            raise UsageError(f"the record {self.key} {what} {odd}, which {'is not' if odd in named else 'was'} given")
        return {"json": dump_record(self.record)} | {name: self.images[name] for name in named}


def row_hash(members: Mapping[str, bytes]) -> str:
    """Return the sha256 of a row: of each member's suffix, size and bytes, in order."""
    digest = hashlib.sha256()
    for name, content in members.items():
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def encode_image(image: Image.Image, suffix: str = "png", *, quality: int = 92) -> bytes:
    """Return an image as a file: png keeps every pixel, jpg and webp take a quality."""
    buffer = io.BytesIO()
    settings: dict[str, Any] = {} if suffix == "png" else {"quality": quality}
    image.save(buffer, _FORMAT[suffix], **settings)
    return buffer.getvalue()


def as_member(data: bytes, name: str) -> tuple[str, bytes]:
    """Return suffix and bytes of an image file for a shard: as it is, or as PNG if it is of another format.

    `name` is for messages. The image is decoded as a check.

    Raises: ImageError.
    """
    image = decode_image(data, name)
    with Image.open(io.BytesIO(data)) as opened:
        suffix = _SUFFIX.get(opened.format or "")
    return (suffix, data) if suffix else ("png", encode_image(image))


class ShardWriter:
    """Writes rows to the shards of one source, one after the other.

    with ShardWriter(folder, "cats") as writer:
        writer.add(Row("000000", Pair(image="jpg", caption="a cat"), {"jpg": data}))
    write_dataset(folder, writer.shards, writer.kinds, made_by={"command": "kg data import"})

    A shard is renamed into place when it is full or the block ends well: its tar first, then its index, so that a tar
    with an index is complete. The one in hand goes where the block fails.
    """

    def __init__(
        self,
        folder: Path,
        source: str,
        *,
        first: int = 0,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        shard_name(source, first)  # checks the name
        make_folder(folder)
        self.folder, self.source, self.number = folder, source, first
        self.max_rows, self.max_bytes = max_rows, max_bytes
        self.notes = dict(notes or {})
        self.shards: list[ShardEntry] = []
        self.kinds: dict[str, int] = {}
        self._rows: list[Row] = []
        self._bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()

    def add(self, row: Row) -> None:
        """Take a row; writes a shard when it is full. Raises: UsageError, OutputError."""
        self._rows.append(row)
        self._bytes += sum(map(len, row.images.values()))
        if len(self._rows) >= self.max_rows or self._bytes >= self.max_bytes:
            self.close()

    def close(self) -> None:
        """Write the rows in hand as a shard, if there are any. Raises: UsageError, OutputError."""
        if not self._rows:
            return
        entry = write_shard(self.folder / shard_name(self.source, self.number), self._rows, notes=self.notes)
        self.shards.append(entry)
        for row in self._rows:
            self.kinds[row.record.kind] = self.kinds.get(row.record.kind, 0) + 1
        self.number += 1
        self._rows, self._bytes = [], 0


def write_shard(path: Path, rows: Sequence[Row], *, notes: Mapping[str, Any] | None = None) -> ShardEntry:
    """Write a tar of rows and its index; both are whole or not there, the index last.

    Args:
        notes: kept in the index beside the tar's sha256; JSON values

    Raises: UsageError for a key twice or a record without its images; OutputError.
    """
    pyarrow, parquet = pyarrow_parts()
    if len({row.key for row in rows}) < len(rows):
        raise UsageError(f"{path.name} would hold a key twice")
    with whole_file(path) as partial:
        columns = _write_tar(partial, rows)
        digest = sha256(partial)
    noted = json.dumps({**(notes or {}), "sha256": digest}, sort_keys=True).encode()
    table = pyarrow.Table.from_pylist(columns, schema=index_schema().with_metadata({NOTES: noted}))
    with whole_file(index_path(path)) as partial:
        parquet.write_table(table, partial, compression="zstd")
    return ShardEntry(name=path.name, sha256=digest, rows=len(rows))


def read_notes(shard: Path) -> dict[str, Any]:
    """Return the notes of a shard's index, its tar's sha256 among them; empty where there is no readable index."""
    pyarrow, parquet = pyarrow_parts()
    try:
        metadata = parquet.read_schema(index_path(shard)).metadata or {}
        return dict(json.loads(metadata.get(NOTES, b"{}")))
    except (OSError, ValueError, pyarrow.ArrowException):
        return {}


def write_dataset(
    folder: Path, shards: Iterable[ShardEntry], kinds: Mapping[str, int], *, made_by: Mapping[str, Any], text: str = ""
) -> Dataset:
    """Write dataset.json and the dataset card; `text` is put into the card. Raises: OutputError."""
    made = {"program": f"kgcli {__version__}", **made_by}
    dataset = Dataset(
        shards=tuple(sorted(shards, key=lambda one: one.name)), kinds=dict(sorted(kinds.items())), made_by=made
    )
    write_whole(folder / CARD, _card(folder.name, dataset, text))
    write_whole(folder / DATASET, dataset.model_dump_json(indent=2) + "\n")
    return dataset


def _write_tar(path: Path, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Write the tar; return the lines of its index."""
    lines = []
    with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            key, members, places = check_key(row.key), row.members(), []
            for name, content in members.items():
                info = tarfile.TarInfo(f"{key}.{name}")  # its defaults hold no time, owner or machine
                info.size = len(content)
                places.append({"name": name, "offset": tar.offset + BLOCK, "size": len(content)})
                tar.addfile(info, io.BytesIO(content))
            width, height = _size(row)
            lines.append(
                {
                    "key": key,
                    "kind": row.record.kind,
                    "members": places,
                    "width": width,
                    "height": height,
                    "num_tokens": row.num_tokens,
                    "sha256": row_hash(members),
                    "flags": list(row.flags),
                }
            )
    return lines


def _size(row: Row) -> tuple[int, int]:
    main = row.record.main_image
    if main is None:
        return 0, 0
    with Image.open(io.BytesIO(row.images[main])) as image:
        return image.size


def _card(name: str, dataset: Dataset, text: str) -> str:
    rows = sum(shard.rows for shard in dataset.shards)
    kinds = "\n".join(f"| {kind} | {number:,} |" for kind, number in dataset.kinds.items())
    made = "\n".join(f"- {key}: `{json.dumps(value)}`" for key, value in dataset.made_by.items())
    parts = [
        "---\ntags:\n- webdataset\n- kgcli\n---\n",
        f"# {name}\n",
        f"{rows:,} rows in {len(dataset.shards):,} WebDataset shards, each with a parquet index beside it.\n",
        f"| kind | rows |\n|---|---|\n{kinds}\n",
        text.strip() + "\n" if text.strip() else "",
        f"## Made by\n\n{made}\n",
        "## Read\n\n```yaml\ndata:\n  sources:\n  - {kind: shards, path: " + name + "}\n```\n",
    ]
    return "\n".join(part for part in parts if part)
