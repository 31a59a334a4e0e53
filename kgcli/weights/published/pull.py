"""`kg models pull`: download published weights, check their sha256 and convert them to a model folder."""

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
class PullOptions:
    """Options of a pull."""

    to: Path | None = None  # model folder to write; None is the default one of the name
    revision: str | None = None  # of the repository
    source: str | None = None  # a file or folder on this machine, or another repository
    dtype: str | None = None
    accept: bool = False  # of an unofficial mirror and its licence
    sha256: str | None = None  # overrides the catalogue's
    offline: bool = False


def pull(name: str, options: PullOptions) -> Path:
    """Return the model folder of published weights, making it unless it exists already.

    Raises: UsageError, MissingError, IncompatibleError; KgError where it cannot be written.
    """
    entry = find_entry(name)
    if options.dtype is not None and options.dtype not in DTYPE_NAMES:
        raise UsageError(f"--dtype is {options.dtype}; it must be one of {', '.join(DTYPE_NAMES)}")
    if options.to is not None:
        return _make(entry, options, check_target(options.to, [], overwrite=False))
    if (present := local_model(name)) is not None:
        _log.warning("%s is already on this machine; check it with `kg models verify %s`", name, name)
        return present
    folder = models_folder()
    with _locked(folder, name):
        for left in folder.glob(f".{name}.*.partial"):  # left by an interrupted conversion
            shutil.rmtree(left, ignore_errors=True)
        return _make(entry, options, check_target(folder / name, [], overwrite=False))


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Lock out other processes that make the same model."""
    lock = FileLock(folder / f".{name}.lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise KgError(f"{name} is being downloaded by another process; wait for that one") from None
    except OSError as error:
        raise KgError(f"{folder} cannot be written: {error}; set KG_MODELS to another folder") from None
    try:
        yield
    finally:
        lock.release()


def _make(entry: Entry, options: PullOptions, out: Path) -> Path:
    given = None if options.source is None else Path(options.source).expanduser()
    if given is not None and given.exists():
        _convert(_open_local(entry, given, options), out, options)
        return out
    source = _choose(entry, options)
    _check_accepted(entry, source, options)
    _check_space(source, out)
    try:
        files = _fetch_all(source, options)
    except HubError as error:
        raise _with_next(error, entry, source) from None
    _convert(files, out, options)
    return out


@dataclass(frozen=True, kw_only=True)
class Files:
    """Checked files, ready to be converted."""

    checkpoint: Path  # the file, or the folder of a transformers model
    tokenizer: Path | None  # SentencePiece model, unless the folder has its own
    origin: dict[str, str]  # for the record and the model card


def _choose(entry: Entry, options: PullOptions) -> Published:
    """Return the source to download from: the entry's first, or the given repository."""
    if options.source is None:
        return entry.sources[0]
    for source in entry.sources:
        if source.repository == options.source:
            return source
    if not is_hub_id(options.source):
        raise MissingError(f"--from {options.source} is not a file, a folder or a valid Hub repository id")
    copies = [
        replace(source, repository=options.source, pinned=True, official=False, licence="not known")
        for source in entry.sources
    ]
    there = (copy for copy in copies if has_file(copy.repository, copy.file, options.revision, offline=options.offline))
    return next(there, copies[0])


def _check_accepted(entry: Entry, source: Published, options: PullOptions) -> None:
    if source.official:
        return
    text = (
        f"{source.repository} is an unofficial mirror of {entry.name} ({source.file}, {source.size / 1e9:.1f} GB); "
        f"licence: {source.licence}"
    )
    if not options.accept:
        raise UsageError(f"{text}. Give --accept to use it anyway")
    _log.warning("%s", text)


def _check_space(source: Published, out: Path) -> None:
    """Check that there is disk space for download and conversion."""
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
    """Return a folder, or its nearest existing parent."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _fetch_all(source: Published, options: PullOptions) -> Files:
    """Download the files of a conversion, the small ones first: they fail sooner."""
    revision = options.revision
    for name in source.extras:
        # All files are taken from the commit of the first.
        revision = fetch(source.repository, name, revision=revision, offline=options.offline).revision
    tokenizer = None if source.extras else _fetch_tokenizer(options)
    expected = options.sha256 or (source.sha256 if source.pinned else "")
    found = fetch(source.repository, source.file, revision=revision, sha256=expected, offline=options.offline)
    if not expected and found.sha256 != source.sha256:
        _log.warning(
            "%s of %s has sha256 %s, as on the Hub; a duplicate had %s",
            *(source.file, source.repository, found.sha256, source.sha256),
        )
    return Files(
        checkpoint=found.path.parent if source.form == "transformers" else found.path,
        tokenizer=tokenizer,
        origin=_origin(source.file, found, source.repository, source.licence),
    )


def _fetch_tokenizer(options: PullOptions) -> Path:
    try:
        return fetch(*TOKENIZER, offline=options.offline).path
    except HubError as error:
        raise MissingError(f"the tokenizer is not available: {error}") from None


def _origin(file: str, found: Fetched, repository: str, licence: str) -> dict[str, str]:
    return {
        "repository": repository,
        "revision": found.revision,
        "file": file,
        "sha256": found.sha256,
        "licence": licence,
    }


def _open_local(entry: Entry, given: Path, options: PullOptions) -> Files:
    """Open a local copy after checking its sha256 against the catalogue's, or the given one."""
    names = [source.file for source in entry.sources]
    path = given if given.is_file() else next((given / name for name in names if (given / name).is_file()), None)
    if path is None:
        raise MissingError(f"{given} holds none of {', '.join(names)}; give the file, or its folder")
    found = sha256_of(path)
    known = [options.sha256] if options.sha256 else [source.sha256 for source in entry.sources]
    if found not in known:
        raise IncompatibleError(
            f"{path} has sha256 {found}; {entry.name} is published as {' or '.join(map(str, known))}: it was "
            f"not read. If you trust it, give --sha256 {found}"
        )
    if path.suffix == ".safetensors":
        return Files(checkpoint=path.parent, tokenizer=None, origin={"file": path.name, "sha256": found})
    beside = path.with_name(TOKENIZER[1])
    tokenizer = beside if beside.is_file() else _fetch_tokenizer(options)
    return Files(checkpoint=path, tokenizer=tokenizer, origin={"file": path.name, "sha256": found})


def _with_next(error: HubError, entry: Entry, source: Published) -> HubError:
    """Return the error with a hint at the next source to try."""
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
        hint = f"`kg models pull {entry.name} --from FILE`: a local copy"
    return HubError(f"{error}; next: {hint}", error.status)


def _convert(files: Files, out: Path, options: PullOptions) -> None:
    from kgcli.weights.published import convert  # torch loads here, after the checks that do not need it

    source = convert.open_checked(files.checkpoint, out)
    convert.to_folder(source, out, sentencepiece=files.tokenizer, dtype=options.dtype, origin=files.origin)
