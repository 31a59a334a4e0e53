"""Hashes of weight files are kept, and never outlive the files they are of."""

import hashlib
import json
import os
import time

import pytest

from kgcli.weights import hashes
from kgcli.weights.hashes import hash_files

LONG_AGO = time.time_ns() - 3600 * 10**9


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "SMALL", 0)
    monkeypatch.setattr(hashes, "SETTLED", -(10**18))  # ctime cannot be set, and waiting takes seconds
    return tmp_path / "cache" / "kgcli" / "hashes"


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        path.write_bytes(path.name.encode() * 100)
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return paths


@pytest.fixture
def reads(monkeypatch):
    """The files that were read, call by call."""
    seen, real = [], hashes._hash
    monkeypatch.setattr(hashes, "_hash", lambda paths: seen.append(list(paths)) or real(paths))
    return seen


def expected(paths):
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def test_the_second_call_reads_nothing(files, reads, cache):
    assert hash_files(files) == hash_files(files) == expected(files)
    assert len(reads) == 1 and len(list(cache.iterdir())) == 1


def test_the_order_of_files_counts(files, reads):
    assert hash_files(files) != hash_files(files[::-1])


def test_a_file_of_the_same_size_and_time_is_read_again(files, reads):
    first = hash_files(files)
    files[0].write_bytes(files[0].read_bytes()[::-1])
    os.utime(files[0], ns=(LONG_AGO, LONG_AGO))  # as `cp -p`, `rsync -t` and `tar` set it
    assert hash_files(files) == expected(files) != first
    other = files[0].with_name("other")
    other.write_bytes(b"x" * files[0].stat().st_size)
    os.utime(other, ns=(LONG_AGO, LONG_AGO))
    os.replace(other, files[0])
    assert hash_files(files) == expected(files)


def test_a_file_that_has_just_changed_is_not_kept(files, reads, cache, monkeypatch):
    monkeypatch.setattr(hashes, "SETTLED", 3_000_000_000)
    assert hash_files(files) == hash_files(files) == expected(files)
    assert len(reads) == 2 and not cache.exists()


def test_a_file_that_changes_while_it_is_read_is_not_kept(files, cache, monkeypatch):
    real = hashes._hash

    def slow(paths):
        found = real(paths)
        files[1].write_bytes(b"other")
        return found

    monkeypatch.setattr(hashes, "_hash", slow)
    hash_files(files)
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", "\0", '{"format": 1}', None])
def test_a_damaged_cache_is_ignored_and_mended(files, reads, cache, content):
    hash_files(files)
    (kept,) = cache.iterdir()
    values = {**json.loads(kept.read_text()), "sha256": "../../etc"} if content is None else None
    kept.write_text(json.dumps(values) if content is None else content)
    assert hash_files(files) == expected(files)
    assert json.loads(kept.read_text())["sha256"] == expected(files)


def test_without_a_place_for_the_cache_it_works(files, tmp_path):
    (tmp_path / "cache").write_text("a file, where the folder should be")
    assert hash_files(files) == expected(files)


def test_few_bytes_are_not_kept(files, cache, monkeypatch):
    monkeypatch.setattr(hashes, "SMALL", 10**6)
    assert hash_files(files) == expected(files)
    assert not cache.exists()
