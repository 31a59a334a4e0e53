"""All access to the Hugging Face Hub: one offline rule, downloads that resume, and failures as one line.

Files are stored in the Hub's own cache, shared with other programs. huggingface_hub discards an interrupted download;
here it is kept and resumed, and a file enters the cache only after its sha256 has been checked.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from kgcli.errors import IncompatibleError, MissingError
from kgcli.runtime import is_offline

_SHA256 = re.compile(r"[0-9a-f]{64}")  # the ETag of a large file; a small one has a git hash

_log = logging.getLogger(__name__)


class HubError(MissingError):
    """A repository or file that is unavailable; `status` is the HTTP status, or None without a response."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Fetched:
    """A file in the local cache whose content has been checked."""

    path: Path
    revision: str  # commit of the repository
    sha256: str


@dataclass(frozen=True)
class RemoteFile:
    """The Hub's metadata of a file."""

    url: str
    revision: str  # commit of the repository
    etag: str
    size: int | None  # bytes

    @property
    def sha256(self) -> str:
        """Hash of the content, or "" for a small file, for which the Hub gives none."""
        return self.etag if _SHA256.fullmatch(self.etag) else ""


def is_hub_id(name: str) -> bool:
    """Tell whether a name has the form of a Hub repository id."""
    return re.fullmatch(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", name) is not None


def snapshot(repository: str, *, files: Sequence[str] | None = None, offline: bool = False) -> Path:
    """Return the local folder of a repository, downloaded unless offline; `files` are patterns of the files needed.

    Raises: HubError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    offline = is_offline(offline)
    try:
        patterns = None if files is None else list(files)
        folder = snapshot_download(repository, local_files_only=offline, allow_patterns=patterns, endpoint=_endpoint())
        return Path(folder)
    except (*_failures(), HFValidationError) as error:
        raise _explain(error, repository, offline=offline) from None


def fetch(
    repository: str, file: str, *, revision: str | None = None, sha256: str = "", offline: bool = False
) -> Fetched:
    """Return a file of a repository from the local cache, downloading it or resuming its download if needed.

    Its content is checked against `sha256`, if given, and against the Hub's hash.

    Raises: HubError; IncompatibleError for other content.
    """
    if is_offline(offline):
        return _from_cache(repository, file, revision, sha256)
    try:
        remote = file_metadata(repository, file, revision=revision)
    except HubError as error:
        if error.status is not None or _cached(repository, file, revision) is None:
            raise
        _log.warning("%s; using the copy in the local cache", error)
        return _from_cache(repository, file, revision, sha256)
    if sha256 and remote.sha256 and remote.sha256 != sha256:
        raise IncompatibleError(
            f"{file} of {repository} has changed: the Hub gives sha256 {remote.sha256}, "
            f"expected {sha256}; nothing was downloaded"
        )
    expected = sha256 or remote.sha256
    found = ""
    if _cached(repository, file, remote.revision) is None:
        found = _download(remote, repository, file, expected)
    _note_revision(repository, revision or "main", remote.revision)
    return _from_cache(repository, file, remote.revision, expected, found)


def file_metadata(repository: str, file: str, *, revision: str | None = None) -> RemoteFile:
    """Request the metadata of a file from the Hub.

    Raises: HubError.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repository, file, revision=revision, endpoint=_endpoint())
    try:
        found = get_hf_file_metadata(url, endpoint=_endpoint())
    except _failures() as error:
        raise _explain(error, repository, file) from None
    if found.commit_hash is None or found.etag is None:
        raise HubError(f"{url} did not respond as a Hub does: check HF_ENDPOINT, proxy and firewall")
    return RemoteFile(url, found.commit_hash, found.etag, found.size)


def has_file(repository: str, file: str, revision: str | None = None, *, offline: bool = False) -> bool:
    """Tell whether a file of a repository is available: in the local cache, or on the Hub."""
    if _cached(repository, file, revision) is not None:
        return True
    try:
        return not is_offline(offline) and bool(file_metadata(repository, file, revision=revision))
    except HubError:
        return False


def sha256_of(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(remote: RemoteFile, repository: str, file: str, sha256: str) -> str:
    """Download a file into the Hub's cache, in its documented layout.

    Returns its hash, or "" if its content was already there under another name.
    """
    from huggingface_hub import hf_hub_download

    blob = _storage(repository) / "blobs" / remote.etag
    partial = blob.with_name(f"{blob.name}.partial")
    found = ""
    try:
        blob.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{partial}.lock", timeout=0):
            if not blob.exists():
                _resume(remote, partial)
                found = _check_content(partial, file, repository, sha256)
                os.replace(partial, blob)
        # The blob exists now: this only creates the link to it.
        hf_hub_download(repository, file, revision=remote.revision, endpoint=_endpoint())
        return found
    except Timeout:
        raise HubError(f"{file} of {repository} is being downloaded by another process; wait for that one") from None
    except _failures() as error:
        raise _explain(error, repository, file) from None


def _storage(repository: str) -> Path:
    """Return the folder of a repository in the Hub's cache: blobs, snapshots that point to them, and refs."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def _note_revision(repository: str, revision: str, commit: str) -> None:
    """Record the commit of a branch or tag, so that its files are found offline."""
    ref = _storage(repository) / "refs" / revision
    if revision != commit and (not ref.is_file() or ref.read_text("utf-8") != commit):
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, "utf-8")


def _resume(remote: RemoteFile, partial: Path) -> None:
    """Download the missing bytes of a partial file."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with partial.open("ab") as file:
        if remote.size is not None and file.tell() > remote.size:
            file.truncate(0)
            file.seek(0)
        if file.tell():
            _log.warning("resuming a download at %.2f GB", file.tell() / 1e9)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # a compressed response has no ranges
        http_get(remote.url, file, resume_size=file.tell(), headers=headers, expected_size=remote.size)
        file.flush()
        os.fsync(file.fileno())


def _check_content(partial: Path, file: str, repository: str, sha256: str) -> str:
    found = sha256_of(partial)
    if sha256 and found != sha256:
        partial.unlink()
        raise IncompatibleError(
            f"{file} of {repository} was downloaded with sha256 {found}, expected {sha256}: "
            "it was deleted unread; download it again"
        )
    return found


def _cached(repository: str, file: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _from_cache(repository: str, file: str, revision: str | None, sha256: str, found: str = "") -> Fetched:
    """Check a cached file; `found` is its hash, if already computed."""
    path = _cached(repository, file, revision)
    if path is None:
        raise HubError(f"{file} of {repository} is not in the local cache, and nothing is downloaded offline")
    found = found or sha256_of(path)
    blob = path.resolve().name  # named after the Hub's hash
    expected = sha256 or (blob if _SHA256.fullmatch(blob) else "")
    if expected and found != expected:
        raise IncompatibleError(
            f"{path} has sha256 {found}, expected {expected}: it was not read; "
            f"delete {path.resolve()} and download it again"
        )
    return Fetched(path, _commit_of(path, file), found)


def _commit_of(path: Path, file: str) -> str:
    """Return the commit in a cached path, `snapshots/COMMIT/FILE`."""
    return path.parents[file.count("/")].name


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _failures() -> tuple[type[Exception], ...]:
    """Return the error types of the network, the Hub, its cache and the disk."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import LocalEntryNotFoundError

    return (HTTPError, LocalEntryNotFoundError, OSError)


def _explain(error: BaseException, repository: str, file: str = "", *, offline: bool = False) -> HubError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"{file} of {repository}" if file else repository
    if isinstance(error, HfHubHTTPError):
        reasons = {
            GatedRepoError: "it is gated: accept its terms on its page and log in with `hf auth login`",
            RepositoryNotFoundError: "there is no such repository, or it is private (`hf auth login`)",
            RemoteEntryNotFoundError: "the repository has no such file",
            RevisionNotFoundError: "the repository has no such revision",
        }
        status = error.response.status_code
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), "access is refused")
        return HubError(f"{name} cannot be downloaded: the Hub answers {status}, {reason}", status)
    if offline or (isinstance(error, LocalEntryNotFoundError) and error.__cause__ is None):
        return HubError(f"{name} is not in the local cache, and nothing is downloaded offline")
    if "Consistency check failed" in str(error):
        return HubError(f"{name} was interrupted; run the command again to resume")
    first = (str(error) or type(error).__name__).split("\n")[0]
    return HubError(f"{name} cannot be downloaded: {first}")
