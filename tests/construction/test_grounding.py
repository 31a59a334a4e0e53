"""Florence-2, OWLv2 and Qwen3-VL as stages: real classes at toy size, from a folder to shards by `kg data build`."""

import importlib.util
import json

import numpy as np
import pytest
import tiny_stages
from PIL import Image
from tiny_clipseg import write_clipseg

from kgcli.construction.segmenters.base import box_inside
from kgcli.construction.segmenters.florence2 import Florence2, Florence2Options, fill
from kgcli.construction.segmenters.grounding_vlm import GroundingVlm, GroundingVlmOptions, parse_box
from kgcli.construction.stage import Place
from kgcli.data.images import decode_image
from kgcli.data.looking.rows import read_rows
from kgcli.data.looking.validate import validate
from kgcli.data.shards.records import Pair
from kgcli.data.shards.write import Row, ShardWriter, encode_image
from kgcli.errors import IncompatibleError

CAPTIONS = ("a cat and a dog with a hat", "a hat on the mat", "a man with a dog")
SIDE = 48


def image_of(number):
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


def write_pairs(folder, captions):
    with ShardWriter(folder, "pairs") as writer:
        for number, caption in enumerate(captions):
            data = {"png": encode_image(image_of(number))}
            writer.add(Row(f"{number:05d}", Pair(image="png", caption=caption), data))
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), CAPTIONS)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def sam2(models):
    return tiny_stages.write_sam2(models / "sam2")


def build(kg, source, out, *settings):
    """Run the command; return the rows that it wrote."""
    words = [word for setting in ("filters=[]", "size=32", "format=png", *settings) for word in ("-s", setting)]
    ran = kg("data", "build", "compositional", source, "--to", out, *words)
    assert ran.code == 0, ran.err
    assert not validate(out).faults
    return [row for shard in sorted(out.glob("*.tar")) for row in read_rows(shard)]


def check_cuts(rows):
    """Check that every entity is a word of its caption, with two images of the size asked for."""
    for row in rows:
        for entity in row.record.entities:
            assert row.record.caption[slice(*entity.span)] == entity.noun
            assert {decode_image(row.images[name]).size for name in (entity.crop, entity.crop_on_white)} == {(32, 32)}


def test_owlv2_finds_the_boxes(kg, pairs, models, sam2, tmp_path):
    owl = tiny_stages.write_owlv2(models / "owl")
    segmenter = f"segmenter={{use: grounded-sam, detector: {owl}, model: {sam2}, threshold: 0.0, size: 32}}"
    rows = build(kg, pairs, tmp_path / "out", segmenter)
    assert rows
    check_cuts(rows)


def test_florence2_answers_with_polygons(kg, pairs, models, tmp_path):
    florence = tiny_stages.write_florence2(models / "florence")
    rows = build(
        kg, pairs, tmp_path / "out", f"segmenter={{use: florence2, model: {florence}, max_new_tokens: 40, size: 32}}"
    )
    assert rows
    check_cuts(rows)


def test_a_florence2_of_another_format_is_one_line(models):
    folder = tiny_stages.write_florence2(models / "bare florence")
    settings = json.loads((folder / "processor_config.json").read_text())
    del settings["post_processor_config"]
    (folder / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(IncompatibleError, match="no rules for polygons"):
        Florence2(Florence2Options(model=str(folder)), Place("cpu", {str(folder): str(folder)}))


@pytest.mark.parametrize("kind", ["florence2", "qwen3_vl"])
def test_a_vlm_captions_images(kg, models, tmp_path, kind):
    """A random model's caption names nothing, so its row is dropped; the others keep theirs."""
    write = {"florence2": tiny_stages.write_florence2, "qwen3_vl": tiny_stages.write_qwen3_vl}[kind]
    captioner = (
        f"captioner={{use: model, model: {write(models / f'{kind} captions')}, max_new_tokens: 8, keep_given: true}}"
    )
    clipseg = write_clipseg(models / f"clipseg of {kind}", bias=5.0)
    source = write_pairs(tmp_path / "pairs", (*CAPTIONS, ""))
    segmenter = f"segmenter={{use: clipseg, model: {clipseg}, size: 32}}"
    rows = build(kg, source, tmp_path / "out", captioner, "text_filters=[]", segmenter)
    assert [row.record.caption for row in rows] == list(CAPTIONS)
    found = json.loads((tmp_path / "out" / "yield.json").read_text())
    dropped = ("captioner/model: no caption", "extractor/rules: no entity in the caption")
    assert (found["input"], found["kept"]) == (4, 3) and sum(found.get(reason, 0) for reason in dropped) == 1


@pytest.mark.skipif(importlib.util.find_spec("xgrammar") is None, reason="xgrammar is not installed")
def test_a_vlm_answers_with_boxes(kg, pairs, models, sam2, tmp_path):
    qwen = tiny_stages.write_qwen3_vl(models / "qwen")
    options = GroundingVlmOptions(detector=str(qwen), model=str(sam2))
    stage = GroundingVlm(options, Place("cpu", {str(one): str(one) for one in (qwen, sam2)}))
    bound = [stage.grammar.processor({"const": None})]
    assert stage.vlm.answer(image_of(0), "What is there?", max_new_tokens=9, logits_processor=bound) == "null"
    rows = build(kg, pairs, tmp_path / "out", f"segmenter={{use: vlm, detector: {qwen}, model: {sam2}, size: 32}}")
    assert rows
    check_cuts(rows)


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ('{"bbox_2d": [10, 20, 300, 400]}', (10, 20, 300, 400)),
        (
            '```json\n[\n\t{"bbox_2d": [ 1, 2.5, 3, 4 ], "label": "cat"},\n{"bbox_2d": [5, 6, 7, 8]}]\n```',
            (1, 2.5, 3, 4),
        ),
        ('{"bbox_2d": null}', None),
        ('{"bbox_2d": [1, 2, 3]}', None),
        ("there is no cat", None),
    ],
)
def test_the_box_of_an_answer(answer, box):
    assert parse_box(answer) == box


def test_boxes_and_polygons_stay_inside_the_image():
    assert box_inside([-5.0, 10.0, 60.0, 30.0], image_of(0)) == (0.0, 10.0, 48.0, 30.0)
    assert box_inside([60.0, 30.0, -5.0, 10.0], image_of(0)) == (0.0, 10.0, 48.0, 30.0)
    assert box_inside([50.0, 10.0, 60.0, 30.0], image_of(0)) is None
    mask = fill([[10, 10, 30, 10, 30, 20, 10, 20], [40, 40]], (SIDE, 60))
    assert mask.shape == (60, SIDE) and mask.sum() == 21 * 11
    assert fill([[1, 1, 2, 2]], (SIDE, SIDE)) is None
