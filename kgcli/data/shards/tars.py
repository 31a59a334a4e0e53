"""WebDataset tars walked from end to end: the files of each key, and where the tar is cut or damaged."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kgcli.data.images import MAX_BYTES
from kgcli.errors import MissingError, printable


@dataclass(frozen=True)
class KeyFiles:
    """The files of one key of a tar by suffix, in order, and the offset of each one's bytes."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict, repr=False)
    places: dict[str, int] = field(default_factory=dict, repr=False)


def split_name(name: str) -> tuple[str, str]:
    """Return key and suffix of a member's name: what comes before and after the first dot of its last part.

    The suffix is empty for a file that belongs to no sample.
    """
    folder, slash, last = name.removeprefix("./").rpartition("/")
    base, _, suffix = last.partition(".")
    return f"{folder}{slash}{base}", suffix if base else ""


def walk_tar(path: Path) -> Iterator[KeyFiles]:
    """Yield the files of each key: neighbours whose folders are the same and whose names agree up to the first dot.

    Raises: MissingError at the place where the tar is damaged, after what comes before it; also for one that ends
        without a tar's end mark, as a cut between two files leaves it.
    """
    found = KeyFiles("")
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, suffix = split_name(member.name)
                if not suffix:
                    continue
                if key != found.key:
                    if found.members:
                        yield found
                    found = KeyFiles(key)
                found.members[suffix] = _content(tar, member)
                found.places[suffix] = member.offset_data
            _check_end(path, tar.offset)
        if found.members:
            yield found
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        after = f"after {printable(found.key)}" if found.key else "from its start"
        reason = " ".join(str(error).split())[:200]
        raise MissingError(f"{path.name} is damaged {after}: {reason}") from None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_BYTES:
        raise tarfile.ReadError(f"{printable(member.name)[:100]} has {member.size:,} bytes")
    file = tar.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _check_end(path: Path, offset: int) -> None:
    with path.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing")
