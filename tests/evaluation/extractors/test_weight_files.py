import hashlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from range_server import running

from kgcli.errors import IncompatibleError, MissingError
from kgcli.evaluation.extractors import weight_files as weightfiles
from kgcli.evaluation.extractors.weight_files import TABLE, WeightFile, resolve, resolve_all


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("KG_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def published(tmp_path, monkeypatch) -> WeightFile:
    """A file of the table that can be fetched, from a folder in place of a server."""
    source = tmp_path / "server" / "net.pth"
    source.parent.mkdir()
    source.write_bytes(b"weights" * 400_000)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    one = WeightFile(file="net.pth", url=source.as_uri(), sha256=digest, use="tests")
    monkeypatch.setitem(TABLE, "net", one)
    return one


def test_every_missing_file_is_named_with_its_address_and_place(tmp_path, cache):
    with pytest.raises(MissingError) as failure:
        resolve_all(["dino", "clip", "inception"], tmp_path, offline=True)
    message = str(failure.value)
    for name in ("dino", "clip", "inception"):
        assert TABLE[name].file in message and TABLE[name].url in message and TABLE[name].use in message
    assert TABLE["clip"].sha256 in message and "not published" in message and str(tmp_path) in message
    assert "\n" not in message


def test_names_and_addresses_that_hold_hashes_agree_with_the_table():
    assert TABLE["inception"].sha256.startswith(TABLE["inception"].file.split("-")[-1].removesuffix(".pth"))
    assert TABLE["clip"].sha256 in TABLE["clip"].url
    assert all(one.url.endswith(one.file) for one in TABLE.values())


def test_the_addresses_are_those_of_the_libraries():
    import open_clip
    import timm
    from cleanfid.downloads_helper import inception_url
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    assert TABLE["inception"].url == URL_INCEPTION_V3
    assert TABLE["inception-clean"].url == inception_url
    assert TABLE["clip"].url == open_clip.get_pretrained_url("ViT-B-32", "openai")
    assert TABLE["dino"].url == timm.get_pretrained_cfg("vit_small_patch16_224.dino").url


def test_a_folder_that_is_given_comes_before_the_cache(tmp_path, cache):
    folder = tmp_path / "mine"
    folder.mkdir()
    for place, content in ((folder, b"mine"), (cache, b"cached")):
        (place / TABLE["dino"].file).write_bytes(content)
    assert resolve("dino", folder).path.read_bytes() == b"mine"
    assert resolve("dino").path.read_bytes() == b"cached"
    assert resolve("dino").sha256 == hashlib.sha256(b"cached").hexdigest()


def test_another_file_of_the_name_is_refused(cache):
    (cache / TABLE["clip"].file).write_bytes(b"something else")
    with pytest.raises(IncompatibleError, match="is not the published file"):
        resolve("clip", offline=True)


def test_a_folder_that_is_not_there_is_named(tmp_path, cache):
    with pytest.raises(MissingError, match="--weights"):
        resolve("clip", tmp_path / "nowhere")


def test_a_fetched_file_is_checked_and_kept(cache, published):
    found = resolve("net")
    assert found.path == cache / "net.pth" and found.sha256 == published.sha256
    assert [one.name for one in cache.iterdir()] == ["net.pth"]
    Path(published.url.removeprefix("file://")).unlink()
    assert resolve("net", offline=True) == found


def test_a_file_that_arrives_damaged_is_not_kept(cache, published):
    Path(published.url.removeprefix("file://")).write_bytes(b"cut sh")
    with pytest.raises(IncompatibleError, match="a file other than the published one"):
        resolve("net")
    assert not list(cache.iterdir())


def test_a_file_that_cannot_be_fetched_is_missing(cache, published):
    Path(published.url.removeprefix("file://")).unlink()
    with pytest.raises(MissingError, match="could not be downloaded"):
        resolve("net")
    assert not list(cache.iterdir())


def test_offline_fetches_nothing(cache, published):
    with pytest.raises(MissingError, match="nothing is downloaded offline"):
        resolve("net", offline=True)


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("KG_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weightfiles.cache_folder() == tmp_path / "kgcli" / "weights"


def test_a_file_that_is_cut_short_is_not_kept(cache, monkeypatch):
    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)

        def log_message(self, *args):
            pass

    with running(HTTPServer(("127.0.0.1", 0), Server)) as url:
        file = WeightFile(file="net.pth", url=f"{url}/net.pth", sha256="", use="tests")
        monkeypatch.setitem(TABLE, "net", file)
        with pytest.raises(MissingError, match="ended after 10 of 1,000 bytes"):
            resolve("net")
    assert not list(cache.glob("**/*pth*"))
