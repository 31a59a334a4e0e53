import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import Qwen2VLImageProcessor

from kgcli.construction import run
from kgcli.construction.config import load_config
from kgcli.construction.given import Given
from kgcli.construction.models import process
from kgcli.construction.run import BuildPlan, run_build
from kgcli.construction.shard import SLICE, ShardTask, build_shard
from kgcli.construction.stage import Cut, Draft, NotTaken, Options, Place
from kgcli.construction.world import WorldCaptioner, WorldOptions, WorldSegmenter, world_caption
from kgcli.data.images import decode_image
from kgcli.data.looking.rows import read_rows
from kgcli.data.looking.validate import validate
from kgcli.data.shards.fragments import compositional_fragments
from kgcli.data.shards.records import Pair, Text
from kgcli.data.shards.write import Row, ShardWriter, encode_image, write_dataset
from kgcli.data.sources.world import draw
from kgcli.errors import ConfigError, KgError, MissingError, UsageError
from kgcli.files import sha256
from kgcli.world.rendering import crop, render

SIZE = 64
WORLD = [
    "filters=[{use: duplicates}]",
    "captioner={use: world}",
    "extractor={use: world}",
    f"segmenter={{use: world, size: {SIZE}}}",
    f"size={SIZE}",
    "format=png",
]


def write_world(folder, num=10, per_shard=4):
    with ShardWriter(folder, "nano", max_rows=per_shard) as writer:
        for index in range(num):
            image = draw({"compositional": 1.0}, 0, index, SIZE).render(SIZE).image
            writer.add(Row(f"{index:05d}", Pair(image="png", caption=""), {"png": encode_image(image)}))
    write_dataset(folder, writer.shards, writer.kinds, made_by={})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "pairs"
    write_world(folder)
    return folder


def build(source, folder, settings=WORLD, **changes):
    return run_build(BuildPlan(source=source, folder=folder, config=load_config(None, list(settings)), **changes))


def rows(folder):
    return [row for shard in sorted(folder.glob("*.tar")) for row in read_rows(shard)]


def hashes(folder):
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".md"}


def test_the_worlds_oracles_rebuild_its_compositional_samples(world, tmp_path):
    built = build(world, tmp_path / "out")
    assert built.kept == built.rows == 10 and not validate(tmp_path / "out").faults
    for index, row in enumerate(rows(tmp_path / "out")):
        spec = draw({"compositional": 1.0}, 0, index, SIZE).truth.spec
        rendered = render(spec, SIZE)
        record = row.record
        assert [record.caption[slice(*entity.span)] for entity in record.entities] == [
            placed.subject.noun for placed in spec.subjects
        ]
        fragments = compositional_fragments(record, drop_entity_text=False)
        assert "".join(one for one in fragments if one) == record.caption
        assert len([one for one in fragments if one is None]) == len(spec.subjects)
        assert np.array_equal(decode_image(row.images["png"]), rendered.image)
        for place, entity in enumerate(record.entities):
            for name, keep in ((entity.crop, True), (entity.crop_on_white, False)):
                assert np.array_equal(decode_image(row.images[name]), crop(rendered, place, SIZE, keep_background=keep))


def test_its_captions_have_images_where_the_generators_have_them():
    """The same words and places as a sample whose caption keeps its nouns, drawn with the same random numbers."""
    from kgcli.world import text

    for index in range(30):
        spec = draw({"compositional": 1.0}, 0, index, SIZE).truth.spec
        fragments = text.compositional(spec, np.random.default_rng([51, index]), drop=False)
        words = [" ".join(one.split()) for one in fragments if one is not None]
        assert world_caption(spec, index) == " ".join(words)
        for placed, before in zip(spec.subjects, words, strict=False):
            assert before.endswith(placed.subject.noun)


@pytest.mark.parametrize("stage", ["captioner", "segmenter"])
def test_an_image_that_the_world_does_not_show_there_is_refused(stage):
    kinds = {"captioner": WorldCaptioner, "segmenter": WorldSegmenter}
    oracle = kinds[stage](WorldOptions(size=SIZE), Place())
    shown, other = (draw({"compositional": 1.0}, 0, index, SIZE).render(SIZE).image for index in (3, 4))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=50)
    oracle.apply([Draft("00003", "", Image.open(buffer))])
    with pytest.raises(UsageError, match="the image of 00003 is not what the nano world shows there"):
        oracle.apply([Draft("00003", "", other)])


class Whole:
    """A stage whose only entity is the whole image."""

    def apply(self, drafts):
        for draft in drafts:
            draft.entities = [("cat", (2, 5))]
            draft.cuts = [Cut(draft.image, draft.image)]


class Picky(Whole):
    """A stage whose processor refuses images of 1 pixel's width."""

    def apply(self, drafts):
        for draft in drafts:
            process(refuse_narrow, images=draft.image)
        super().apply(drafts)


def refuse_narrow(images, return_tensors):
    if images.width == 1:
        raise ValueError("mean must have 1 elements\nif it is an iterable, got 3")


class Faulty(Whole):
    """A stage with a fault of its own."""

    def apply(self, drafts):
        raise ValueError("shapes do not\nmatch")


def write_images(folder, sizes):
    with ShardWriter(folder, "a") as writer:
        for number, size in enumerate(sizes):
            image = Image.new("RGB", size, (number, 0, 0))
            writer.add(Row(f"{number:03d}", Pair(image="png", caption="a cat"), {"png": encode_image(image)}))
    return ShardTask(folder / "a-00000.tar", folder / "out-00000.tar", "x")


def test_an_image_that_a_model_cannot_take_is_counted_and_the_others_are_built(tmp_path):
    task = write_images(tmp_path, [(1 if number in (3, 17) else 8, 8) for number in range(20)])
    notes = build_shard(task, load_config(None, ["square=false", "size=16"]), [("segmenter/picky", Picky())])
    assert notes["yield"] == {"kept": 18, "segmenter/picky: the model cannot take the sample": 2}
    assert [fault["origin"] for fault in notes["faults"]] == ["a-00000.tar 003", "a-00000.tar 017"]
    assert "mean must have 1 elements if it is" in notes["faults"][0]["reason"]


def test_what_a_processor_refuses_is_told_in_one_line():
    with pytest.raises(NotTaken, match=r"^absolute aspect ratio must be smaller than 200"):
        process(Qwen2VLImageProcessor(), images=Image.new("RGB", (1, 300)))


def test_a_fault_of_a_stage_itself_is_none_of_its_samples(tmp_path):
    task = write_images(tmp_path, [(8, 8)] * 3)
    expected = r"^segmenter/faulty failed at a sample of a-00000\.tar 000 to a-00000\.tar 002: shapes do not match$"
    with pytest.raises(KgError, match=expected):
        build_shard(task, load_config(None, ["square=false", "size=16"]), [("segmenter/faulty", Faulty())])
    assert not task.target.exists()


def test_a_key_that_comes_twice_is_a_fault_of_the_second_row(tmp_path):
    tar = tmp_path / "a" / "a.tar"
    tar.parent.mkdir()
    with tarfile.open(tar, "w") as archive:
        for number, key in enumerate(("a", "b", "a")):
            data = {"png": encode_image(Image.new("RGB", (8, 8), (number, 0, 0))), "txt": b"a cat"}
            for suffix, content in data.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    task = ShardTask(tar, tmp_path / "out-00000.tar", "x")
    notes = build_shard(task, load_config(None, ["square=false", "size=16"]), [("segmenter/whole", Whole())])
    assert notes["yield"] == {"faults": 1, "kept": 2}
    assert notes["faults"] == [{"origin": "a.tar a", "reason": "its key is that of a row before it"}]


def test_the_hashes_are_those_of_the_rows_that_are_built_on(tmp_path):
    """A broken row does not take the key of a good one, and what an earlier version kept of the tar is not read."""
    good, tar = encode_image(picture(1)), tmp_path / "in" / "in.tar"
    tar.parent.mkdir()
    with tarfile.open(tar, "w") as archive:
        for key, image in (("a", b"no image"), ("b", encode_image(picture(2))), ("a", good), ("c", good)):
            for suffix, content in (("png", image), ("txt", b"a cat on a mat")):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    kept = tmp_path / "out" / ".hashes"
    kept.mkdir(parents=True)
    (kept / f"in-{sha256(tar)[:16]}-1.json").write_text(json.dumps({"keys": [], "images": [], "captions": []}))
    plan = BuildPlan(source=tar.parent, folder=tmp_path / "out", config=load_config(None, WORLD))
    assert run._hashes(plan, tar).keys == ["b", "a", "c"]


def test_images_alone_wait_for_a_captioner(tmp_path):
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as archive:
        for name, content in (
            ("a.JPG", encode_image(Image.new("RGB", (8, 8)), "jpg")),
            ("b.json", b'{"status": "404"}'),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    task = ShardTask(tar, tmp_path / "out-00000.tar", "x")
    config = load_config(None, ["square=false", "size=16"])
    notes = build_shard(task, config, [("captioner/given", Given(Options(), Place()))])
    assert notes["yield"] == {"captioner/given: no caption": 1, "kept": 0, "no image with a caption": 1}


def test_processes_give_the_same_bytes(world, tmp_path):
    build(world, tmp_path / "one")
    build(world, tmp_path / "two", num_workers=2)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_few_images_of_a_shard_are_held_at_once(tmp_path, monkeypatch):
    write_world(tmp_path / "pairs", num=2 * SLICE + 3, per_shard=100)
    decoded, held = [], []

    def decode(*args):
        image = decode_image(*args)
        decoded.append(weakref.ref(image))
        held.append(sum(one() is not None for one in decoded))
        return image

    monkeypatch.setattr("kgcli.construction.shard.decode_image", decode)
    settings = ["filters=[]", *WORLD[1:]]
    assert build(tmp_path / "pairs", tmp_path / "out", settings).kept == len(held) == 2 * SLICE + 3
    assert max(held) <= SLICE + 1
    monkeypatch.setattr("kgcli.construction.shard.SLICE", 1000)
    build(tmp_path / "pairs", tmp_path / "at once", settings)
    assert max(held) >= 2 * SLICE + 3 and hashes(tmp_path / "out") == hashes(tmp_path / "at once")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Data about its own settings
def test_ray_gives_the_same_bytes(world, tmp_path):
    pytest.importorskip("ray")
    build(world, tmp_path / "one")
    build(world, tmp_path / "ray", engine="ray", num_workers=2)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "ray")


def test_a_second_call_makes_only_what_is_missing(world, tmp_path):
    out = tmp_path / "out"
    build(world, out)
    before = hashes(out)
    (out / "compositional-00001.parquet").unlink()
    os.utime(out / "compositional-00000.tar", ns=(1, 1))
    built = build(world, out)
    assert built.made == 1 and built.kept == 10 and hashes(out) == before
    assert (out / "compositional-00000.tar").stat().st_mtime_ns == 1
    with pytest.raises(UsageError, match="other data, models or settings"):
        build(world, out, [*WORLD, "quality=50"])
    with pytest.raises(UsageError, match="the source itself"):
        build(out, out)


def picture(seed, size=(300, 300)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def messy_rows():
    """Rows of which all but two are dropped, each for a reason of its own."""

    def pair(image, caption):
        return Pair(image="png", caption=caption), {"png": encode_image(image)}

    yield pair(picture(0), "a cat on the mat")
    yield pair(picture(1), "a dog in the sun")
    yield pair(picture(0).resize((280, 280)), "something else here")  # near duplicate of the first
    yield pair(picture(2), "a Dog in the sun")  # its caption is there
    yield pair(picture(3, (100, 100)), "a small cat")
    yield pair(picture(4, (900, 300)), "a long cat")
    yield pair(Image.new("RGB", (300, 300), "white"), "a white cat")
    yield pair(picture(5), "cat")
    yield pair(picture(6), "")
    yield pair(picture(7), "on the beach")
    yield Text(text="a cat"), {}
    broken = bytearray(encode_image(picture(8)))
    broken[100:] = bytes(len(broken) - 100)
    yield Pair(image="png", caption="a broken cat"), {"png": bytes(broken)}


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messy") / "pairs"
    with ShardWriter(folder, "messy", max_rows=2) as writer:
        for number, (record, images) in enumerate(messy_rows()):
            writer.add(Row(f"{number:05d}", record, images))
    return folder


def test_the_yield_table_sums_to_the_input_and_names_every_reason(messy, tmp_path, clipseg):
    filters = "filters=[{use: size}, {use: aspect}, {use: blank}, {use: duplicates, caption_likeness: 1.0}]"
    settings = [f"segmenter={{use: clipseg, model: {clipseg}}}", "size=32", filters]
    built = build(messy, tmp_path / "out", settings)
    table = dict(built.lines())
    assert sum(table.values()) == built.rows == 12
    assert table == {
        "captioner/given: no caption": 1,
        "extractor/rules: no entity in the caption": 1,
        "faults": 1,
        "filters/aspect: sides over 2 : 1": 1,
        "filters/blank: blank": 1,
        "filters/duplicates: caption repeated": 1,
        "filters/duplicates: image repeated": 1,
        "filters/size: under 256 pixels": 1,
        "kept": 2,
        "no image with a caption": 1,
        "text_filters/words: under 2 words": 1,
    }
    assert json.loads((tmp_path / "out" / "yield.json").read_text()) == {"input": 12, **table}
    (fault,) = (tmp_path / "out" / "faults.jsonl").read_text().splitlines()
    assert json.loads(fault)["origin"] == "messy-00005.tar 00011"
    assert "| **input** | 12 |" in (tmp_path / "out" / "README.md").read_text()
    assert not validate(tmp_path / "out").faults


@pytest.fixture(scope="session")
def clipseg(tmp_path_factory):
    from tiny_clipseg import write_clipseg

    return write_clipseg(tmp_path_factory.mktemp("models") / "clipseg", bias=5.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("segmenter={use: clipsegg}", "did you mean clipseg"),
        ("segmenter={use: clipseg, treshold: 0.3}", "treshold: Extra inputs"),
        ("sise=3", "sise"),
        ("segmenter={}", "segmenter.use: Field required"),
        ("size", "write key=value"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_made(messy, tmp_path, setting, message):
    with pytest.raises(ConfigError, match=message):
        build(messy, tmp_path / "out", [setting])
    assert not (tmp_path / "out").exists()


def test_models_come_from_folders_or_ids_alone(messy, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingError, match="there is no model folder /nowhere"):
        build(messy, tmp_path / "out", ["segmenter={use: clipseg, model: /nowhere}"])
    with pytest.raises(MissingError, match="could not be downloaded"):
        build(messy, tmp_path / "out", ["segmenter={use: clipseg, model: somebody/clipseg}"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="holds no weights"):
        build(messy, tmp_path / "out", [f"segmenter={{use: clipseg, model: {tmp_path / 'empty'}}}"])


def test_other_weights_make_another_data_set(messy, tmp_path, clipseg):
    from tiny_clipseg import write_clipseg

    other = write_clipseg(tmp_path / "other", seed=1, bias=5.0)
    settings = ["size=32", f"segmenter={{use: clipseg, model: {clipseg}}}"]
    build(messy, tmp_path / "out", settings)
    with pytest.raises(UsageError, match="other data, models or settings"):
        build(messy, tmp_path / "out", ["size=32", f"segmenter={{use: clipseg, model: {other}}}"])


STEPS = 7  # of a shard, at each of which a process may be killed: before five stages, before and after its write
KILLED_BETWEEN_STAGES = """
import os, sys
from pathlib import Path
from kgcli.construction import shard
from kgcli.construction.config import load_config
from kgcli.construction.run import BuildPlan, run_build

kill_at = int(sys.argv[3])
seen = 0
write = shard.write_shard

def step():
    global seen
    if seen == kill_at:
        os.kill(os.getpid(), 9)
    seen += 1

def watched(build):
    def run(task, config, stages):
        class Watched:
            def __init__(self, stage):
                self.stage = stage
            def apply(self, drafts):
                step()
                self.stage.apply(drafts)
        return build(task, config, [(name, Watched(stage)) for name, stage in stages])
    return run

def writing(*args, **kwargs):
    step()
    entry = write(*args, **kwargs)
    step()
    return entry

import kgcli.construction.engines as engines
shard.write_shard = writing
engines.build_shard = watched(engines.build_shard)
run_build(BuildPlan(source=Path(sys.argv[1]), folder=Path(sys.argv[2]), config=load_config(None, sys.argv[4:])))
print("done", seen)
"""


@pytest.mark.slow
def test_a_kill_between_any_two_stages_loses_at_most_one_shard(world, tmp_path):
    build(world, tmp_path / "whole")
    expected = hashes(tmp_path / "whole")
    for number in range(100):
        out = tmp_path / f"killed-{number}"
        command = [sys.executable, "-c", KILLED_BETWEEN_STAGES, str(world), str(out), str(number), *WORLD]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if ran.returncode == 0:
            break
        assert ran.returncode == -signal.SIGKILL, ran.stderr
        done = number // STEPS
        finished = sorted(path.stem for path in out.glob("*.parquet"))
        assert len(finished) in (done, done + 1)
        built = build(world, out)
        assert built.made == 3 - len(finished) and hashes(out) == expected
    assert number == 3 * STEPS and ran.stdout == f"done {number}\n"


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(world, tmp_path):
    command = [
        sys.executable,
        "-m",
        "kgcli",
        "data",
        "build",
        "compositional",
        str(world),
        "--to",
        str(tmp_path / "out"),
    ]
    command += ["--workers", "2", *(word for setting in WORLD for word in ("-s", setting))]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    children: list[int] = []
    for _ in range(300):
        children = children_of(process.pid)
        if len(children) >= 3 or process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    for _ in range(200):
        if not any(Path(f"/proc/{child}/cmdline").exists() for child in children):
            break
        time.sleep(0.05)
    assert not [child for child in children if Path(f"/proc/{child}/cmdline").exists()]
    build(world, tmp_path / "out")
    build(world, tmp_path / "whole")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def children_of(pid):
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def test_the_command(kg, world):
    settings = [word for setting in WORLD for word in ("-s", setting)]
    ran = kg("data", "build", "compositional", world, "--to", "out", *settings)
    assert ran.code == 0, ran.err
    assert ran.lines[0].split() == ["kept", "10", "100.0%"] and "entities in 3 shards" in ran.lines[-1]
    assert kg("data", "build", "compositional", world, "--to", "x", "--engine", "dask").code == 2
    assert kg("data", "build", "compositional", "nowhere", "--to", "x", *settings).code == 3
