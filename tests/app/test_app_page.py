"""The served page as a stranger sees it: its API, what it refuses, and fifty requests at once.

Needs the extra `app`.
"""

import base64
import importlib.util
import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from app_images import item
from app_server import running
from PIL import Image

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed: pip install 'kgcli[app]'"
)
SECRET = "root:x:0:0"
MANY = 50
GROWTH = 48  # MiB that a hundred further requests may leave behind


@pytest.fixture(scope="module")
def server(tiny_model):
    with running("--model", tiny_model) as found:
        yield found


def test_it_listens_on_this_machine_only(server):
    assert server.address.startswith("http://127.0.0.1:")


def test_the_api_generates_from_images_inside_the_request(server):
    settings = json.dumps({"seed": 4, "steps": 1, "num_images": 2})
    done, answer = server.call("generate", "a <image:-1>", [item()], settings)
    assert done, answer
    images = [Image.open(io.BytesIO(base64.b64decode(tile["src"].split(",")[1]))) for tile in json.loads(answer)[0]]
    assert [image.size for image in images] == [(16, 16)] * 2 and "kgcli" in images[0].info
    done, answer = server.call("edit", item(), "add a hat", '{"seed": 1}')
    assert done and json.loads(answer)[0][0]["seed"] == 1


@pytest.mark.parametrize(
    ("prompt", "images"),
    [
        ("<image:/etc/passwd>", []),
        ("<image:../../../../../../etc/passwd>", []),
        ("<image:..>", []),
        ("<image:file:///etc/passwd>", []),
        ("file:///etc/passwd", []),
        ("<image:https://example.com/cat.png>", []),
        ("https://example.com/cat.png", []),
        ("<image:nano/cat.png>", []),
        ("<image:-1>", []),
        ("<image:-1>", [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]),
        ("<image:-1>", [{"path": "/etc/passwd", "url": "http://127.0.0.1:1/", "meta": {"_type": "gradio.FileData"}}]),
        ("<image:-1>", [{"name": "a.png", "data": "/etc/passwd"}]),
        ("<image:-1>", [{"name": "a.png", "data": base64.b64encode(b"root:x:0:0").decode()}]),
    ],
)
def test_what_names_a_file_or_an_address_is_refused(server, prompt, images):
    done, answer = server.call("generate", prompt, images, "{}")
    assert not done and SECRET not in answer


@pytest.mark.parametrize("settings", ["[]", "{", '{"lora": "/etc/passwd"}', '{"control": "canny"}', '{"steps": 1e9}'])
def test_settings_that_are_not_offered_are_refused(server, settings):
    assert not server.call("generate", "a cat", [], settings)[0]


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=/proc/self/environ",
        "gradio_api/file=../../../../etc/passwd",
        "file=/etc/passwd",
        "file/etc/passwd",
        "gradio_api/file/%2Fetc%2Fpasswd",
        "gradio_api/proxy=http://127.0.0.1:22/",
        "gradio_api/stream/a/b/c/playlist.m3u8",
        "gradio_api/deep_link",
        "monitoring",
        "static/../../../../../../etc/passwd",
        "static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "assets/..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "custom_component/x/y/z",
        "gradio_api//file=/etc/passwd",
        "GRADIO_API/FILE=/etc/passwd",
    ],
)
def test_no_route_serves_a_file(server, path):
    code, body = server.fetch(path)
    assert SECRET.encode() not in body and (code >= 400 or b"<!doctype html" in body.lower()[:200])


def test_nothing_can_be_uploaded(server):
    boundary = "x"
    body = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nhi\r\n--{boundary}--\r\n'
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    for path in ("gradio_api/upload", "upload"):
        assert server.fetch(path, body.encode(), headers)[0] == 403


def test_fifty_requests_at_once_are_all_answered_and_memory_stays(server):
    def ask(seed):
        done, answer = server.call("generate", "a <image:-1>", [item()], json.dumps({"seed": seed, "steps": 1}))
        return json.loads(answer)[0][0]["seed"] if done else answer

    with ThreadPoolExecutor(MANY) as pool:
        assert list(pool.map(ask, range(MANY))) == list(range(MANY))
        before = server.memory
        for _ in range(2):
            assert list(pool.map(ask, range(MANY))) == list(range(MANY))
    assert server.memory - before < GROWTH


def test_the_page_holds_no_address_of_elsewhere(server):
    page = server.fetch("")[1].decode()
    assert "fonts.googleapis" not in page and "fonts.gstatic" not in page


def test_a_taken_port_is_one_line(server, tiny_model):
    port = server.address.rstrip("/").rpartition(":")[2]
    command = [sys.executable, "-m", "kgcli", "app", "--no-open", "--port", port, "--model", str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        f"error: port {port} is taken; give another with --port",
    )
