"""The server's laws: OpenAI's shapes, no request lost, no path of the machine read, memory bounded."""

import base64
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from kgcli import engine
from kgcli.errors import PromptError, UsageError
from kgcli.inference.metadata import read_metadata
from kgcli.serving.form import parse_form
from kgcli.serving.images import Service, prompt_text
from kgcli.serving.server import Limits, Server
from kgcli.serving.store import ImageStore

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tiny_model):
    return engine.load(str(tiny_model), device="cpu")


@pytest.fixture
def serve(model):
    """Start servers on a free port of loopback; each gives a client."""
    running = []

    def start(**limits):
        server = Server(("127.0.0.1", 0), Service(model), limits=Limits(**limits))
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        client = httpx2.Client(base_url=server.url, timeout=60, trust_env=False)
        running.append((server, thread, client))
        return client

    yield start
    for server, thread, client in running:
        client.close()
        server.shutdown()
        thread.join()
        server.close()


def png(size=(24, 24), colour="red"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def image_of(entry):
    return Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))


def test_images_are_those_of_the_model(serve, model, tmp_path):
    client = serve()
    done = client.post("/v1/images/generations", json={"prompt": "a cat", "n": 2, "seed": 7, "model": "tiny"})
    assert done.status_code == 200, done.text
    assert [entry["seed"] for entry in done.json()["data"]] == [7, 8] and done.json()["created"] > 0
    expected = model.generate("a cat", seed=7, num_images=2)
    for entry, image in zip(done.json()["data"], expected, strict=True):
        assert image_of(entry).convert("RGB").tobytes() == image.tobytes()
    (tmp_path / "a.png").write_bytes(base64.b64decode(done.json()["data"][0]["b64_json"]))
    assert read_metadata(tmp_path / "a.png")["seed"] == 7


def test_settings_of_a_call(serve, model):
    given = {"prompt": "a cat", "seed": 1, "size": "32x16", "steps": 3, "guidance_scale": 2, "scheduler": "euler"}
    done = serve().post("/v1/images/generations", json={**given, "output_format": "webp", "user": "me"})
    made = image_of(done.json()["data"][0])
    assert (made.format, made.size) == ("WEBP", (32, 16))


def test_an_edit_takes_several_images(serve, model, tmp_path):
    client = serve()
    files = [("image[]", ("a.png", png(), "image/png")), ("image[]", ("../b.png", png((30, 12), "blue"), "image/png"))]
    for index, (_, (_, data, _)) in enumerate(files):
        (tmp_path / f"{index}.png").write_bytes(data)
    paths = [str(tmp_path / f"{index}.png") for index in range(2)]
    for prompt, expected in (
        ("a <image:-1> and <image:-2>", "a <image:-1> and <image:-2>"),
        ("together", "<image:-1|fit=crop> <image:-2|fit=crop> together"),
    ):
        done = client.post("/v1/images/edits", files=files, data={"prompt": prompt, "seed": "3", "n": "1"})
        assert done.status_code == 200, done.text
        (image,) = model.generate(expected, images=paths, seed=3)
        assert image_of(done.json()["data"][0]).convert("RGB").tobytes() == image.tobytes()


def test_a_response_can_name_a_url(serve):
    client = serve()
    done = client.post("/v1/images/generations", json={"prompt": "a cat", "response_format": "url"})
    (entry,) = done.json()["data"]
    assert entry["url"].startswith(str(client.base_url).rstrip("/") + "/images/")
    got = client.get(entry["url"])
    assert got.headers["content-type"] == "image/png" and Image.open(io.BytesIO(got.content)).size == (16, 16)
    assert client.get("/images/other.png").status_code == 404
    assert client.get("/images/../../etc/passwd").status_code == 404


def test_models_are_listed(serve):
    client = serve()
    assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert client.get("/v1/models/tiny").json()["object"] == "model"
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    assert client.get("/health").json() == {"status": "ok"}


OUTSIDE = [
    "/etc/passwd",
    "../secret.png",
    "nano/cat.png",
    "~/secret.png",
    "file:///etc/passwd",
    "http://localhost/a.png",
    "\\-1",
    " ./-1",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_tag_names_uploaded_images_only(serve, path):
    client, prompt = serve(), f"a <image:{path}> in the snow"
    refused = [
        client.post("/v1/images/generations", json={"prompt": prompt}),
        client.post("/v1/images/edits", files={"image": png()}, data={"prompt": f"<image:-1> {prompt}"}),
    ]
    for response in refused:
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"] == "prompt" and error["type"] == "invalid_request_error"
        assert re.match(r"column \d+: ", error["message"])


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a <image:-1>"}, "prompt"),
        ({"prompt": "a cat", "n": 11}, "n"),
        ({"prompt": "a cat", "size": "huge"}, "size"),
        ({"prompt": "a cat", "size": "17x16"}, None),
        ({"prompt": "a cat", "size": "4096x4096", "n": 2}, None),
        ({"prompt": "a cat", "steps": 0}, None),
        ({"prompt": "a cat", "seed": -1}, None),
        ({"prompt": "a cat", "scheduler": "fast"}, None),
        ({"prompt": "a cat", "sead": 1}, None),
        ({"prompt": "a cat", "stream": True}, "stream"),
        ({"prompt": "a cat", "model": "gpt-image-1"}, None),
        ({"prompt": "a cat", "guidance_scale": "nan"}, None),
    ],
)
def test_wrong_parameters_are_named(serve, values, param):
    done = serve().post("/v1/images/generations", json=values)
    assert done.status_code == 400, done.text
    assert set(done.json()["error"]) == {"message", "type", "param", "code"}
    assert done.json()["error"]["param"] == param


def test_wrong_requests_get_their_status(serve):
    client = serve(upload_bytes=2000)
    post, edit = "/v1/images/generations", "/v1/images/edits"
    assert client.post(post, content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    assert client.post(post, content=b"[]", headers={"Content-Type": "application/json"}).status_code == 400
    assert client.post(post, data={"prompt": "a"}).status_code == 415
    assert client.post("/v1/other", json={}).status_code == 404
    assert client.get(post).status_code == 404
    assert client.post(post, json={"prompt": "a" * 3000}).json()["error"]["code"] == "body_too_large"
    assert client.post(edit, json={"prompt": "a"}).status_code == 400
    assert "at least one image" in client.post(edit, files={"x": (None, b"y"), "prompt": (None, b"a")}).text
    broken = client.post(edit, files={"image": ("a.png", b"not an image")}, data={"prompt": "a"})
    assert broken.status_code == 400 and "image-1.png is not an image" in broken.text and "kg-serve" not in broken.text
    assert client.post(edit, files={"image": png(), "mask": png()}, data={"prompt": "a"}).status_code == 400
    chunked = client.post(post, content=iter([b"{}"]), headers={"Content-Type": "application/json"})
    assert chunked.status_code == 411


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://example.org"}, {"Host": "example.org"}, {"Host": "127.0.0.1.example.org:80"}]
)
def test_web_pages_of_others_are_not_answered(serve, headers):
    done = serve().post("/v1/images/generations", json={"prompt": "a cat"}, headers=headers)
    assert done.status_code == 403 and done.json()["error"]["code"] == "forbidden_origin"


def test_fifty_requests_at_once_lose_none(serve, model):
    client = serve()

    def call(seed):
        return client.post("/v1/images/generations", json={"prompt": "a cat", "seed": seed, "steps": 1})

    with ThreadPoolExecutor(50) as pool:
        done = list(pool.map(call, range(50)))
    assert [response.status_code for response in done] == [200] * 50
    for seed in (0, 49):
        (image,) = model.generate("a cat", seed=seed, num_inference_steps=1)
        assert image_of(done[seed].json()["data"][0]).convert("RGB").tobytes() == image.tobytes()


@pytest.fixture
def slow_unet(model):
    """Denoising that waits until it is released."""
    started, release = threading.Event(), threading.Event()

    def wait(module, args):
        started.set()
        release.wait(30)

    handle = model.pipeline.decoder.unet.register_forward_pre_hook(wait)
    yield started, release
    release.set()
    handle.remove()


def test_a_full_queue_refuses_and_recovers(serve, slow_unet):
    started, release = slow_unet
    client = serve(queue=2)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, "/v1/images/generations", json={"prompt": "a cat"}) for _ in range(2)]
        started.wait(30)
        while (refused := client.post("/v1/images/generations", json={"prompt": "a cat"})).status_code == 200:
            pass
        assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["Retry-After"]) > 0
        release.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
    assert client.post("/v1/images/generations", json={"prompt": "a cat"}).status_code == 200


def test_a_client_that_goes_away_makes_room(serve, slow_unet, caplog):
    started, release = slow_unet
    client = serve(queue=1)
    body = json.dumps({"prompt": "a cat", "steps": 1000}).encode()
    with socket.create_connection((client.base_url.host, client.base_url.port)) as gone:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        gone.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        started.wait(30)
    time.sleep(0.7)
    release.set()
    for _ in range(50):
        done = client.post("/v1/images/generations", json={"prompt": "a cat", "steps": 1})
        if done.status_code == 200:
            return
        time.sleep(0.1)
    pytest.fail("1000 steps for nobody")


def test_a_closing_server_answers_those_who_wait(model, slow_unet):
    started, release = slow_unet
    server = Server(("127.0.0.1", 0), Service(model))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    with ThreadPoolExecutor(3) as pool, httpx2.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        waiting = [pool.submit(client.post, "/v1/images/generations", json={"prompt": "a cat"}) for _ in range(3)]
        started.wait(30)
        folder = server.store.folder
        server.shutdown()
        closing = threading.Thread(target=server.close)
        closing.start()
        time.sleep(0.1)
        release.set()
        assert {future.result().status_code for future in waiting} == {503}
        closing.join()
    thread.join()
    assert not folder.exists()


def test_a_port_in_use_is_refused(serve, model):
    port = serve().base_url.port
    with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {port}"):
        Server(("127.0.0.1", port), Service(model))


def test_any_bytes_pass_through_a_form():
    randomness = random.Random(0)
    for length in (0, 1, 2, 100, 5000):
        data = bytes(randomness.choice(b"\r\n-ab\0\xff") for _ in range(length))
        head = b'--b1\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        (part,) = parse_form("multipart/form-data; boundary=b1", head + data + b"\r\n--b1--\r\n")
        assert (part.name, part.data, part.is_file) == ("image", data, True)


@pytest.mark.parametrize(
    "body",
    [b"", b"--b1", b"--b1--", b"--b1\r\n\r\nx\r\n--b1--", b"--b1\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b1--",
     b'--b1\r\nContent-Disposition: form-data; name="a"\r\n\r\nx', b"--b1\r\nx\r\n--b1--"],
)  # fmt: skip
def test_damaged_forms_are_refused(body):
    with pytest.raises(UsageError, match="form"):
        parse_form("multipart/form-data; boundary=b1", body)


def test_prompts_keep_their_tags():
    assert prompt_text("a <image:-1>", 1) == "a <image:-1>"
    assert prompt_text("a cat", 0) == "a cat"
    with pytest.raises(PromptError):
        prompt_text("<image:a.png>", 1)


def test_the_store_keeps_the_latest_images(tmp_path):
    store = ImageStore(tmp_path, max_bytes=25)
    names = [store.add(b"x" * 10, ".png") for _ in range(3)]
    assert store.read(names[0]) is None and store.read(names[2]) == b"x" * 10
    assert len(list(tmp_path.iterdir())) == 2 and store.read("../" + names[1]) is None


def memory_of(process, field):
    return int(re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())[1]) / 2**10


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_large_uploads_in_bounded_memory_and_stops(tiny_model, number):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "kgcli", "serve", "--model", str(tiny_model), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=env, text=True) as process:
        try:
            url = re.search(r"http://\S+(?=;)", process.stderr.readline())[0]
            file = io.BytesIO()
            Image.frombytes("RGB", (1000, 1000), random.Random(0).randbytes(3 * 10**6)).save(file, "PNG")  # 3 MB
            data = {"prompt": "a hat", "steps": "1"}

            def call(_):
                files = {"image": ("a.png", file.getvalue())}
                return httpx2.post(f"{url}/v1/images/edits", files=files, data=data, timeout=300, trust_env=False)

            for _ in range(3):  # the allocator's pools are full
                assert call(0).status_code == 200
            before = memory_of(process, "VmHWM")
            with ThreadPoolExecutor(50) as pool:
                assert {response.status_code for response in pool.map(call, range(50))} == {200}
            assert memory_of(process, "VmHWM") - before < 100  # MiB; the bodies alone are 150, decoded as much again
            process.send_signal(number)
            assert process.wait(30) == 0
            assert process.stderr.read() == "stopped\n"
        finally:
            process.kill()
