"""Laws of access to the Hub, against a server on this machine: resumed, checked, and offline when told."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, FakeHub, go_online, serve
from huggingface_hub import constants

from kgcli.errors import IncompatibleError
from kgcli.weights.hub import HubError, fetch, is_offline, snapshot

REPOSITORY = "someone/model"
CONTENT = random.Random(0).randbytes(300_000)
CHUNK = constants.DOWNLOAD_CHUNK_SIZE  # bytes that huggingface_hub gathers before it writes them
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub with one repository, the only one that is requested, and an empty cache."""
    with serve(FakeHub({REPOSITORY: {"model.bin": CONTENT, "config.json": b"{}"}})) as hub:
        go_online(monkeypatch, hub, tmp_path / "cache")
        yield hub


def partials(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.partial"))


def test_a_file_is_fetched_once_and_lies_where_every_program_finds_it(hub, tmp_path):
    from huggingface_hub import hf_hub_download

    found = fetch(REPOSITORY, "model.bin", sha256=SHA256)
    assert found.path.read_bytes() == CONTENT
    assert (found.revision, found.sha256) == (COMMIT, SHA256)
    assert fetch(REPOSITORY, "model.bin") == found
    assert hub.ranges("model.bin") == [None]
    assert hf_hub_download(REPOSITORY, "model.bin", local_files_only=True) == str(found.path)
    assert not partials(tmp_path)


def test_a_small_file_has_no_stated_hash_and_is_fetched_all_the_same(hub):
    found = fetch(REPOSITORY, "config.json")
    assert found.sha256 == hashlib.sha256(b"{}").hexdigest()


def test_another_file_than_the_expected_one_is_refused_before_a_byte_is_fetched(hub, tmp_path):
    with pytest.raises(IncompatibleError, match=f"the Hub gives sha256 {SHA256}, expected {'0' * 64}"):
        fetch(REPOSITORY, "model.bin", sha256="0" * 64)
    assert hub.ranges("model.bin") == []


def test_content_with_another_hash_than_stated_is_deleted(hub, tmp_path):
    hub.stated["model.bin"] = "1" * 64
    with pytest.raises(
        IncompatibleError, match=f"downloaded with sha256 {SHA256}, expected {'1' * 64}: it was deleted"
    ):
        fetch(REPOSITORY, "model.bin")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 1000]
    del hub.stated["model.bin"]
    assert fetch(REPOSITORY, "model.bin").sha256 == SHA256


def test_a_file_cut_short_is_resumed_by_the_next_call(hub, tmp_path):
    hub.missing.add("model.bin")
    with pytest.raises(HubError, match=r"model\.bin of someone/model was interrupted; run the command again"):
        fetch(REPOSITORY, "model.bin")
    assert [path.stat().st_size for path in partials(tmp_path)] == [len(CONTENT) - 10]
    hub.missing.clear()
    assert fetch(REPOSITORY, "model.bin").path.read_bytes() == CONTENT
    assert hub.ranges("model.bin") == [None, f"bytes={len(CONTENT) - 10}-"]


def test_a_partial_file_that_is_too_long_is_begun_anew(hub, tmp_path):
    hub.missing.add("model.bin")
    with pytest.raises(HubError):
        fetch(REPOSITORY, "model.bin")
    hub.missing.clear()
    partials(tmp_path)[0].write_bytes(bytes(len(CONTENT) + 1))
    assert fetch(REPOSITORY, "model.bin").sha256 == SHA256


def test_a_killed_download_is_resumed(hub, tmp_path):
    content = CONTENT[:1000] * (2 * CHUNK // 1000)
    hub.files[REPOSITORY]["model.bin"] = content
    hub.pause_after = CHUNK + 1000
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    code = f"from kgcli.weights.hub import fetch; fetch({REPOSITORY!r}, 'model.bin')"
    child = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.DEVNULL)
    assert hub.paused.wait(60)
    wait_for_bytes(tmp_path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    hub.pause_after = None
    hub.released.set()
    done = partials(tmp_path)[0].stat().st_size
    assert 0 < done <= CHUNK
    assert fetch(REPOSITORY, "model.bin").path.read_bytes() == content
    assert hub.ranges("model.bin") == [None, f"bytes={done}-"]


def wait_for_bytes(folder: Path) -> None:
    import time

    end = time.monotonic() + 60
    while time.monotonic() < end and not any(path.stat().st_size for path in partials(folder)):
        time.sleep(0.05)


def test_offline_uses_the_cache_alone(hub, monkeypatch):
    with pytest.raises(HubError, match="is not in the local cache, and nothing is downloaded offline"):
        fetch(REPOSITORY, "model.bin", offline=True)
    found = fetch(REPOSITORY, "model.bin")
    hub.requests.clear()
    assert fetch(REPOSITORY, "model.bin", offline=True) == found
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert is_offline(False)
    assert fetch(REPOSITORY, "model.bin") == found
    assert hub.requests == []


def test_a_damaged_copy_in_the_cache_is_not_used(hub):
    path = fetch(REPOSITORY, "model.bin").path
    path.resolve().write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(IncompatibleError, match=r"it was not read; delete .*blobs/"):
        fetch(REPOSITORY, "model.bin", offline=True)


def test_without_an_answer_the_copy_in_the_cache_serves(hub, monkeypatch, caplog):
    found = fetch(REPOSITORY, "model.bin")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(REPOSITORY, "model.bin") == found
    assert "using the copy in the local cache" in caplog.text
    with pytest.raises(HubError, match=r"other\.bin of someone/model cannot be downloaded: ") as caught:
        fetch(REPOSITORY, "other.bin")
    assert caught.value.status is None and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "the Hub answers 401, there is no such repository, or it is private"),
        (403, "the Hub answers 403, it is gated: accept its terms on its page and log in"),
        (404, "the Hub answers 404, there is no such repository"),
    ],
)
def test_a_refusal_says_why_in_one_line(hub, status, words):
    hub.status[REPOSITORY] = status
    for call in (lambda: fetch(REPOSITORY, "model.bin"), lambda: snapshot(REPOSITORY)):
        with pytest.raises(HubError, match=words) as caught:
            call()
        assert caught.value.status == status and "\n" not in str(caught.value)


def test_a_file_that_the_repository_does_not_have_is_named(hub):
    with pytest.raises(HubError, match=r"nothing\.bin of someone/model .* 404, the repository has no such file"):
        fetch(REPOSITORY, "nothing.bin")


def test_a_snapshot_holds_the_requested_files(hub, monkeypatch):
    folder = snapshot(REPOSITORY, files=["*.json"])
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    hub.requests.clear()
    assert snapshot(REPOSITORY, files=["*.json"], offline=True) == folder
    assert hub.requests == []
    with pytest.raises(HubError, match="nobody/nothing is not in the local cache, and nothing is downloaded offline"):
        snapshot("nobody/nothing", offline=True)
