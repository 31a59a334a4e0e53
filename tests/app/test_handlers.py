"""Laws of the page's actions, at toy size: what they yield, what they refuse, and that a cancelled request ends."""

import base64
import gc
import io
import json
import threading

import pytest
from app_images import item
from PIL import Image

from kgcli import engine
from kgcli.app.examples import example_item
from kgcli.app.handlers import Handlers
from kgcli.app.settings import Offer
from kgcli.app.status import error_status
from kgcli.app.studio import CancelledError, Studio
from kgcli.app.uploads import read_uploads
from kgcli.errors import MissingError, PromptError
from kgcli.inference.metadata import encode_image
from kgcli.weights.hashes import hash_files
from kgcli.weights.shipped import find_adapter
from kgcli.world.examples import EXAMPLES


@pytest.fixture(scope="module")
def handlers(tiny_model):
    return Handlers(Studio(engine.load(str(tiny_model), device="cpu")), Offer())


def pixels(tile):
    data = base64.b64decode(tile["src"].split(",")[1])
    return Image.open(io.BytesIO(data)).tobytes()


def test_a_gallery_grows_image_by_image(handlers):
    shown = list(handlers.generate({"prompt": "a <image:-1>", "images": [item()], "seed": 3, "num_images": 2}, "me"))
    assert [len(value["items"]) for value, _ in shown] == [1, 2]
    assert len({value["run"] for value, _ in shown}) == 1
    assert [tile["seed"] for tile in shown[-1][0]["items"]] == [3, 4]
    assert shown[-1][1] == "<p>2 of 2 images, seed 3</p>"


def test_an_error_is_one_line_and_no_image(handlers):
    ((value, line),) = handlers.generate({"prompt": "<image:/etc/passwd>"}, "me")
    assert value is None
    assert "column 1: a prompt here can only name uploaded images" in line and "&lt;image:/etc/passwd&gt;" in line


def test_what_is_typed_is_escaped():
    line = error_status(PromptError("<b>", column=1, prompt="<script>alert(1)</script>"))
    assert "<script" not in line and "<b>" not in line


def test_an_edit_and_the_api_give_what_generate_gives(handlers):
    fields = {"images": [item()], "instruction": "add a hat", "seed": 5}
    ((edited, _),) = handlers.edit(fields, "me")
    prompt = {"prompt": "<image:-1|fit=crop> add a hat", "images": [item()], "seed": 5}
    (generated,) = handlers.images_of(prompt)
    (by_api,) = handlers.images_of(fields)
    assert pixels(edited["items"][0]) == pixels(generated) == pixels(by_api)


def test_a_bad_line_of_a_batch_is_reported_and_the_others_go_on(handlers):
    *_, (value, line) = handlers.batch({"lines": "a cat\n<image:/etc/passwd>\nadd a hat", "seed": 1}, "me")
    assert [tile["prompt"] for tile in value["items"]] == ["a cat", "add a hat"]
    assert "line 2: column 1: a prompt here can only name uploaded images" in line


def test_a_comparison_has_one_seed_and_two_settings(handlers):
    sides = [{"steps": 1, "guidance_scale": 3}, {"steps": 2, "guidance_scale": 1}]
    *_, (value, _) = handlers.compare({"prompt": "a cat", "seed": -1}, sides, "me")
    first, second = value["items"]
    assert first["seed"] == second["seed"] and (first["label"], second["label"]) == ("A", "B")
    assert (first["steps"], second["steps"]) == (1, 2)


def test_a_dropped_image_restores_what_made_it(handlers):
    fields = {"prompt": "a <image:-1|weight=0.5>", "images": [item()], "seed": 9, "steps": 1, "negative_prompt": "dog"}
    (tile,) = handlers.images_of(fields)
    dropped = {"name": tile["name"], "data": tile["src"]}
    restored = handlers.restore(dropped, [[item("blue"), item()], []])
    assert restored.notes == []
    (again,) = handlers.images_of(restored.values)
    assert pixels(again) == pixels(tile)
    with pytest.raises(MissingError, match=r"cat\.png it was made from is not on this page"):
        handlers.restore(dropped, [[item("blue")]])
    with pytest.raises(MissingError, match=r"cat\.png holds no kgcli metadata"):
        handlers.restore(item(), [])


def dropped(tile, **changes):
    """Return a tile as dropped on the page, with changes of its metadata."""
    image = Image.open(io.BytesIO(base64.b64decode(tile["src"].split(",")[1])))
    data = encode_image(image, ".png", {**json.loads(image.info["kgcli"]), **changes})
    return {"name": tile["name"], "data": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ({}, []),
        ({"guidance_rescale": 0.3}, ["guidance rescale of 0.3, this page uses"]),
        ({"batch": {"size": 4, "index": 1}}, ["a batch of 4"]),
        ({"dtype": "bfloat16", "quantize": "nf4"}, ["dtype bfloat16", "quantize nf4, this page runs with none"]),
        ({"compile": True, "threads": 999}, ["compile on, this page runs with off", "threads 999"]),
        ({"device": "cuda", "threads": 999}, ["device cuda, this page runs with cpu"]),
        ({"device": "cuda", "threads": None}, ["device cuda, this page runs with cpu"]),
        ({"device": "cpu:0"}, []),
        ({"guidance_scale": 30.0, "steps": 500}, ["steps was 500, this page goes to 200", "guidance scale was 30"]),
        ({"width": 2048}, ["width was 2048, this page goes to 1024"]),
    ],
)
def test_what_a_page_cannot_restore_is_noted(handlers, changes, notes):
    (tile,) = handlers.images_of({"prompt": "a cat", "seed": 9})
    found = handlers.restore(dropped(tile, **changes), []).notes
    assert len(found) == len(notes) and all(part in note for part, note in zip(notes, found, strict=True))


def test_an_example_is_restored(handlers):
    cat = example_item("cat.png")
    (tile,) = handlers.images_of({"prompt": "a <image:-1>", "images": [cat], "seed": 9})
    assert handlers.restore(dropped(tile), []).values["images"] == [cat]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_page_offers_the_examples(handlers):
    Page = pytest.importorskip("kgcli.app.page", exc_type=ImportError).Page
    page = Page(handlers).build()
    offered = next(block.value for block in page.blocks.values() if getattr(block, "elem_id", "") == "kg-examples")
    assert offered == [example_item(name) for name in EXAMPLES]
    del page
    gc.collect()  # here, where gradio's open event loops are no fault of the test's


@pytest.fixture(scope="module")
def canny(handlers, tmp_path_factory):
    """Folder of a ControlNet for the tiny model."""
    from diffusers import ControlNetModel

    folder = tmp_path_factory.mktemp("networks") / "canny"
    unet = handlers.studio.model.pipeline.decoder.unet
    ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8)).save_pretrained(folder)
    return folder


def test_a_controlnet_with_other_weights_is_noted(handlers, canny):
    (tile,) = handlers.images_of({"prompt": "a cat", "seed": 9})
    image = {"name": "cat.png", "sha256": read_uploads([item()], most=1)[0].file.sha256}
    control = {"type": "controlnet", "kind": "canny", "scale": 3.0, "image": image, "map_model": None}
    page = Handlers(handlers.studio, Offer(controls={"canny": str(canny)}))

    def notes(name, sha256):
        adapters = [{**control, "model": {"name": name, "sha256": sha256}}]
        return page.restore(dropped(tile, adapters=adapters), [[item()]]).notes

    differ = "this page goes to 2: the image will differ"
    assert notes("renamed", hash_files(sorted(canny.glob("*.safetensors")))) == [f"its control scale was 3, {differ}"]
    other = "its ControlNet (canny) had the weights other, here canny: the image will differ"
    assert notes("other", "0" * 64)[1:] == [other]


def test_adapters_beyond_the_last_are_noted(handlers, canny):
    (tile,) = handlers.images_of({"prompt": "a cat", "seed": 9})
    image = {"name": "cat.png", "sha256": read_uploads([item()], most=1)[0].file.sha256}
    lora = {"type": "lora", "scale": 0.5, "autov3": "0" * 64}
    weights = {"name": "canny", "sha256": hash_files(sorted(canny.glob("*.safetensors")))}
    control = {"type": "controlnet", "scale": 1.0, "image": image, "model": weights}
    adapters = [
        {**lora, "name": "first.safetensors", "sha256": "0" * 64},
        {**lora, "name": "comic.safetensors", "sha256": hash_files([find_adapter("nano/comic")])},
        {**control, "kind": "depth"},
        {**control, "kind": "canny"},
    ]
    offer = Offer(loras={"nano/comic": "nano/comic"}, controls={"canny": str(canny)})
    restored = Handlers(handlers.studio, offer).restore(dropped(tile, adapters=adapters), [[item()]])
    assert (restored.values["lora"], restored.values["control"]) == ("nano/comic", "canny")
    assert [note.partition(" is left out")[0] for note in restored.notes] == [
        "the LoRA first.safetensors",
        "the ControlNet depth",
    ]


def test_a_restored_negative_prompt_keeps_its_escapes(handlers):
    (tile,) = handlers.images_of({"prompt": "a cat", "negative_prompt": r"3 \< 4 \\ 5", "seed": 9})
    restored = handlers.restore(dropped(tile), [])
    assert restored.values["negative_prompt"] == r"3 \< 4 \\ 5"
    assert pixels(handlers.images_of(restored.values)[0]) == pixels(tile)


def test_a_restored_image_does_not_make_the_server_read_its_folders(handlers, tmp_path, monkeypatch):
    """Its inputs lie beside the server under the very names in the metadata, and are not looked at."""
    (tile,) = handlers.images_of({"prompt": "a <image:-1>", "images": [item()], "seed": 9})
    (tmp_path / "cat.png").write_bytes(base64.b64decode(item()["data"]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match="not on this page"):
        handlers.restore({"name": "x.png", "data": tile["src"]}, [])


def test_a_cancelled_request_ends_at_its_next_step(handlers):
    seen = []

    def progress(done, total):
        seen.append((done, total))
        assert "cancelling" in handlers.cancel("me")

    shown = list(handlers.generate({"prompt": "a cat", "num_images": 4, "seed": 1}, "me", progress))
    assert seen == [(1, 8)] and shown[-1][1] == "<p>cancelled; nothing more is generated</p>"
    assert "nothing is being generated" in handlers.cancel("me")


def test_a_cancel_reaches_the_visitor_alone(handlers):
    studio = handlers.studio

    def progress(done, total):
        studio.cancel("another")

    shown = list(handlers.generate({"prompt": "a cat", "seed": 1}, "me", progress))
    assert len(shown[-1][0]["items"]) == 1


def test_requests_of_many_threads_wait_for_each_other(handlers):
    results, failures = {}, []

    def ask(seed):
        try:
            results[seed] = pixels(handlers.images_of({"prompt": "a cat", "seed": seed, "steps": 1})[0])
        except CancelledError as error:  # pragma: no cover
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = pixels(handlers.images_of({"prompt": "a cat", "seed": 3, "steps": 1})[0])
    assert not failures and len(results) == 8 and results[3] == alone


def test_an_image_of_the_page_replays_on_the_command_line(handlers, kg, tmp_path, tiny_model):
    (tile,) = handlers.images_of({"prompt": "a cat", "seed": 2, "steps": 2})
    (tmp_path / "made.png").write_bytes(base64.b64decode(tile["src"].split(",")[1]))
    done = kg("generate", "--from", "made.png", "--model", tiny_model, "-o", "again.png")
    assert done.code == 0, done.err
    assert Image.open(tmp_path / "again.png").tobytes() == pixels(tile)
