"""`kg models pull`: published weights fetched, checked by their sha256 and made a model folder in one go."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from kgcli.errors import IncompatibleError, KgError, MissingError, UsageError
from kgcli.runtime import DTYPES
from kgcli.weights.folder import check_target
from kgcli.weights.hub import Fetched, HubError, fetch, has_file, is_hub_id, sha256_of
from kgcli.weights.published.catalogue import (
    TOKENIZER,
    Entry,
    Published,
    cached_file,
    find_entry,
    hub_cache,
    local_model,
    models_folder,
)

DTYPE_NAMES = (*DTYPES, "fp32", "fp16", "bf16")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Order:
    """The wishes of a user about a pull."""

    to: Path | None = None  # model folder to write; None is the name's own place
    revision: str | None = None  # of the repository
    source: str | None = None  # a file or folder on this machine, or another repository
    dtype: str | None = None
    accept: bool = False  # of an unofficial mirror and its licence
    sha256: str | None = None  # expected in place of the catalogue's
    offline: bool = False


def pull(name: str, order: Order) -> Path:
    """Make a model folder of published weights; returns it, also where it was there already.

    Raises: UsageError, MissingError, IncompatibleError; KgError where it cannot be written.
    """
    entry = find_entry(name)
    if order.dtype is not None and order.dtype not in DTYPE_NAMES:
        raise UsageError(f"--dtype is {order.dtype}; it must be one of {', '.join(DTYPE_NAMES)}")
    if order.to is not None:
        return _make(entry, order, check_target(order.to, [], overwrite=False))
    if (present := local_model(name)) is not None:
        _log.warning("%s is on this machine already; `kg models verify %s` checks it", name, name)
        return present
    folder = models_folder()
    with _locked(folder, name):
        for left in folder.glob(f".{name}.*.partial"):  # by a conversion that was killed
            shutil.rmtree(left, ignore_errors=True)
        return _make(entry, order, check_target(folder / name, [], overwrite=False))


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Keep other processes from making the same model."""
    lock = FileLock(folder / f".{name}.lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise KgError(f"{name} is being fetched by another process; wait for that one") from None
    except OSError as error:
        raise KgError(f"{folder} cannot be written: {error}; KG_MODELS names another folder") from None
    try:
        yield
    finally:
        lock.release()


def _make(entry: Entry, order: Order, out: Path) -> Path:
    given = None if order.source is None else Path(order.source).expanduser()
    if given is not None and given.exists():
        _convert(_open_local(entry, given, order), out, order)
        return out
    source = _choose(entry, order)
    _check_accepted(entry, source, order)
    _check_space(source, out)
    try:
        files = _fetch_all(source, order)
    except HubError as error:
        raise _with_next(error, entry, source) from None
    _convert(files, out, order)
    return out


@dataclass(frozen=True, kw_only=True)
class Files:
    """Checked files, ready to be converted."""

    checkpoint: Path  # the file, or the folder of a transformers model
    tokenizer: Path | None  # SentencePiece model, where the folder does not bring its own
    origin: dict[str, str]  # for the record and the model card


def _choose(entry: Entry, order: Order) -> Published:
    """The source to fetch from: the first of the entry, or the repository that was named."""
    if order.source is None:
        return entry.sources[0]
    for source in entry.sources:
        if source.repository == order.source:
            return source
    if not is_hub_id(order.source):
        raise MissingError(f"--from {order.source} is no file or folder here, and cannot be a Hub repository")
    copies = [
        replace(source, repository=order.source, pinned=True, official=False, licence="not known")
        for source in entry.sources
    ]
    there = (copy for copy in copies if has_file(copy.repository, copy.file, order.revision, offline=order.offline))
    return next(there, copies[0])


def _check_accepted(entry: Entry, source: Published, order: Order) -> None:
    if source.official:
        return
    text = (
        f"{source.repository} is an unofficial mirror of {entry.name} ({source.file}, {source.size / 1e9:.1f} GB); "
        f"licence: {source.licence}"
    )
    if not order.accept:
        raise UsageError(f"{text}. Give --accept to use it all the same")
    _log.warning("%s", text)


def _check_space(source: Published, out: Path) -> None:
    """See that download and conversion will find room, before hours of either."""
    needed = {_existing(out): source.size}
    if cached_file(source) is None:
        cache = _existing(hub_cache())
        shared = next((place for place in needed if place.stat().st_dev == cache.stat().st_dev), cache)
        needed[shared] = needed.get(shared, 0) + source.size
    for place, num_bytes in needed.items():
        free = shutil.disk_usage(place).free
        if free < num_bytes:
            raise KgError(f"{place} needs up to {num_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there")


def _existing(path: Path) -> Path:
    """Return a folder, or the nearest above it that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _fetch_all(source: Published, order: Order) -> Files:
    """Fetch what a conversion reads, the small files first: they fail sooner."""
    revision = order.revision
    for name in source.extras:
        # The commit of the first file is that of all others.
        revision = fetch(source.repository, name, revision=revision, offline=order.offline).revision
    tokenizer = None if source.extras else _fetch_tokenizer(order)
    expected = order.sha256 or (source.sha256 if source.pinned else "")
    found = fetch(source.repository, source.file, revision=revision, sha256=expected, offline=order.offline)
    if not expected and found.sha256 != source.sha256:
        _log.warning(
            "%s of %s has sha256 %s, as the Hub states; a duplicate had %s",
            *(source.file, source.repository, found.sha256, source.sha256),
        )
    return Files(
        checkpoint=found.path.parent if source.form == "transformers" else found.path,
        tokenizer=tokenizer,
        origin=_origin(source.file, found, source.repository, source.licence),
    )


def _fetch_tokenizer(order: Order) -> Path:
    try:
        return fetch(*TOKENIZER, offline=order.offline).path
    except HubError as error:
        raise MissingError(f"the tokenizer cannot be had: {error}") from None


def _origin(file: str, found: Fetched, repository: str, licence: str) -> dict[str, str]:
    return {
        "repository": repository,
        "revision": found.revision,
        "file": file,
        "sha256": found.sha256,
        "licence": licence,
    }


def _open_local(entry: Entry, given: Path, order: Order) -> Files:
    """A copy that the user has, its sha256 seen to be one of the catalogue's, or the one that was given."""
    names = [source.file for source in entry.sources]
    path = given if given.is_file() else next((given / name for name in names if (given / name).is_file()), None)
    if path is None:
        raise MissingError(f"{given} holds none of {', '.join(names)}; give the file, or the folder it is in")
    found = sha256_of(path)
    known = [order.sha256] if order.sha256 else [source.sha256 for source in entry.sources]
    if found not in known:
        raise IncompatibleError(
            f"{path} has sha256 {found}; {entry.name} is published as {' or '.join(map(str, known))}: nothing in it "
            f"was read. Where you know what it is, give --sha256 {found}"
        )
    if path.suffix == ".safetensors":
        return Files(checkpoint=path.parent, tokenizer=None, origin={"file": path.name, "sha256": found})
    beside = path.with_name(TOKENIZER[1])
    tokenizer = beside if beside.is_file() else _fetch_tokenizer(order)
    return Files(checkpoint=path, tokenizer=tokenizer, origin={"file": path.name, "sha256": found})


def _with_next(error: HubError, entry: Entry, source: Published) -> HubError:
    """The same error with the source to try next, and what that gives."""
    repositories = [one.repository for one in entry.sources]
    place = repositories.index(source.repository) + 1 if source.repository in repositories else 0
    if error.status is None:
        return error
    if place < len(repositories):
        other = entry.sources[place]
        hint = f"`kg models pull {entry.name} --from {other.repository}`: the same weights in {other.form}'s names"
    elif entry.name == "kosmosg":
        other_entry = find_entry("kosmos-2")
        hint = f"`kg models pull {other_entry.name}`: {other_entry.gives}"
    else:
        hint = f"`kg models pull {entry.name} --from FILE`: a copy that you have"
    return HubError(f"{error}; next: {hint}", error.status)


def _convert(files: Files, out: Path, order: Order) -> None:
    from kgcli.weights.published import convert  # torch loads here, after all that can fail without it

    source = convert.open_checked(files.checkpoint, out)
    convert.to_folder(source, out, sentencepiece=files.tokenizer, dtype=order.dtype, origin=files.origin)
