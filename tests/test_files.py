"""Whole writes: the old content or the new one, never between, never somebody else's file."""

import errno
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from kgcli.errors import BusyError, MissingError, OutputError, printable
from kgcli.files import (
    claim,
    locked,
    remove_leftovers,
    sha256,
    temporary_name,
    whole_file,
    whole_folder,
    write_whole,
)
from kgcli.weights.tensor_files import check_archive, save_state, save_tensors


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_and_leaves_nothing_else(tmp_path):
    write_whole(tmp_path / "a.txt", "one")
    write_whole(tmp_path / "a.txt", b"two")
    assert (tmp_path / "a.txt").read_text() == "two"
    assert names(tmp_path) == ["a.txt"]


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "a.txt", "old")
    with pytest.raises(KeyError), whole_file(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise KeyError
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_without_overwrite_a_file_that_appeared_meanwhile_stays(tmp_path):
    with (
        pytest.raises(OutputError, match="made by someone else"),
        whole_file(tmp_path / "a", overwrite=False) as partial,
    ):
        partial.write_text("mine")
        (tmp_path / "a").write_text("theirs")
    assert (tmp_path / "a").read_text() == "theirs" and names(tmp_path) == ["a"]


def test_without_hard_links_a_taken_name_still_stays(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    write_whole(tmp_path / "a", "first", overwrite=False)
    with pytest.raises(OutputError):
        write_whole(tmp_path / "a", "second", overwrite=False)
    assert (tmp_path / "a").read_text() == "first" and names(tmp_path) == ["a"]


def test_temporary_names_cannot_be_foreseen_and_links_at_them_are_not_followed(tmp_path, monkeypatch):
    assert temporary_name(tmp_path / "a") != temporary_name(tmp_path / "a")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = tmp_path / ".planted.partial"
    planted.symlink_to(victim)
    monkeypatch.setattr("kgcli.files.temporary_name", lambda path: planted)
    with pytest.raises(OutputError, match="exists"):
        write_whole(tmp_path / "a", "data")
    assert victim.read_text() == "precious"


def test_new_files_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "z" * 300])
def test_names_that_no_file_can_have_are_one_line(tmp_path, name):
    with pytest.raises(OutputError, match="cannot be written") as caught:
        write_whole(tmp_path / name, "x")
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path):
    """The limit on a file's size stands for the full disk: both are an OSError of a write."""
    script = (
        "import resource; from pathlib import Path; from kgcli.files import write_whole\n"
        f"path = Path({str(tmp_path / 'a')!r}); write_whole(path, 'old')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); write_whole(path, b'x' * 2000)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1].startswith("kgcli.errors.OutputError")
    assert "would be larger" in done.stderr
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.readlink(f"/proc/self/fd/{handle}")))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda one, other: (done.append("replace"), replace(one, other)))
    write_whole(tmp_path / "a", "x")
    assert done[0].endswith(".partial") and done[1:] == ["replace", str(tmp_path)]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with whole_folder(tmp_path / "new") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "a").write_text("x")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new/inner/a").read_text() == "x"
    with pytest.raises(KeyError), whole_folder(tmp_path / "other"):
        raise KeyError
    assert names(tmp_path) == ["new"]


def test_a_folder_with_files_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old").write_text("old")
    with pytest.raises(OutputError), whole_folder(tmp_path / "a") as partial:
        (partial / "new").write_text("new")
    assert names(tmp_path / "a") == ["old"]
    with whole_folder(tmp_path / "a", overwrite=True) as partial:
        (partial / "new").write_text("new")
    assert names(tmp_path / "a") == ["new"] and names(tmp_path) == ["a"]


def test_a_folder_that_cannot_be_replaced_comes_back(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old").write_text("old")
    rename = Path.rename

    def fails_for_partials(path, target):
        if path.name.startswith(".a.") and (path / "new").exists():
            raise OSError(errno.EIO, "broken disk")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_for_partials)
    with pytest.raises(OutputError), whole_folder(tmp_path / "a", overwrite=True) as partial:
        (partial / "new").write_text("new")
    assert names(tmp_path / "a") == ["old"] and names(tmp_path) == ["a"]


def test_of_two_claims_one_succeeds(tmp_path):
    claim(tmp_path / "a")
    with pytest.raises(OutputError):
        claim(tmp_path / "a")


def test_a_locked_folder_refuses_a_second_process(tmp_path):
    script = f"from pathlib import Path; from kgcli.files import locked\nwith locked(Path({str(tmp_path)!r})): pass"
    command = [sys.executable, "-c", script]
    with locked(tmp_path):
        done = subprocess.run(command, capture_output=True, text=True)
    assert BusyError.__name__ in done.stderr and "another kg is at work" in done.stderr
    assert subprocess.run(command).returncode == 0


def test_leftovers_of_killed_processes_go(tmp_path):
    temporary_name(tmp_path / "a").write_text("half")
    temporary_name(tmp_path / "b").mkdir()
    (tmp_path / "kept").write_text("x")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["kept"]


def test_paths_in_messages_are_printable():
    assert printable(os.fsdecode(b"caf\xe9\n.png")) == "caf\\xe9\\n.png"
    assert printable("caf\u00e9.png") == "caf\u00e9.png"


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_an_archive_that_states_more_than_it_has_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"\0" * 10_000_000)
    with pytest.raises(MissingError, match="states more bytes than it has"):
        check_archive(tmp_path / "bomb.pt")
    save_state(tmp_path / "good.pt", {"a": torch.zeros(3)})
    check_archive(tmp_path / "good.pt")


@pytest.mark.parametrize("save", [save_tensors, save_state], ids=["tensors", "state"])
def test_tensors_that_find_no_room_are_one_line(tmp_path, save):
    script = (
        "import resource, torch; from pathlib import Path; from kgcli.files import whole_file\n"
        f"from kgcli.weights.tensor_files import {save.__name__}\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"with whole_file(Path({str(tmp_path / 'a')!r})) as path: {save.__name__}(path, {{'a': torch.zeros(9999)}})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1].startswith("kgcli.errors.OutputError"), done.stderr
    assert names(tmp_path) == []


def test_a_folder_does_not_take_the_place_of_a_file(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(OutputError, match="Not a directory"), whole_folder(tmp_path / "a", overwrite=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "mine"


def test_of_a_link_to_a_folder_the_link_alone_goes(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/x").write_text("mine")
    (tmp_path / "a").symlink_to(tmp_path / "theirs")
    with whole_folder(tmp_path / "a", overwrite=True) as partial:
        (partial / "y").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "theirs"] and (tmp_path / "theirs/x").is_file()
    assert not (tmp_path / "a").is_symlink() and (tmp_path / "a/y").is_file()
