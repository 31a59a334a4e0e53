"""A stranger's folder: photos of other packages, with captions, through every command.

The photos come with scikit-image, scikit-learn, ultralytics and Debian's opencv-doc; they are looked for in KG_PHOTOS,
and where these packages are installed.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import tiny_stages
from PIL import Image
from tiny_clipseg import write_clipseg

from kgcli.data.looking.rows import read_rows

CAPTIONS = {
    "astronaut.png": "a woman in an orange suit with a flag",
    "camera.png": "a man with a camera on the grass",
    "chelsea.png": "a cat with green eyes",
    "coffee.png": "a cup of coffee with a spoon on a table",
    "rocket.jpg": "a rocket near a tower",
    "motorcycle_left.png": "a motorcycle in a garage",
    "clock_motion.png": "a clock on the wall",
    "hubble_deep_field.jpg": "many galaxies and stars in space",
    "china.jpg": "a temple with a red roof",
    "flower.jpg": "a flower in the garden",
    "bus.jpg": "a man and a bus on the street",
    "zidane.jpg": "a man in a black suit with a microphone",
    "fruits.jpg": "an apple and a banana with other fruits",
    "baboon.jpg": "a baboon with a red nose",
    "messi5.jpg": "a man and a ball on the grass",
    "apple.jpg": "a red apple",
    "orange.jpg": "an orange fruit",
    "butterfly.jpg": "a butterfly on a flower",
    "home.jpg": "a house with a garden under the sky",
    "squirrel_cls.jpg": "a squirrel on the ground",
    "building.jpg": "a tall building",
    "HappyFish.jpg": "a fish in the water",
}
PACKAGES = ("skimage", "sklearn", "ultralytics")
PLACES = [Path("/usr/share/doc/opencv-doc")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    places = [Path(os.environ["KG_PHOTOS"])] if "KG_PHOTOS" in os.environ else list(PLACES)
    for name in PACKAGES:
        if (spec := importlib.util.find_spec(name)) is not None and spec.submodule_search_locations:
            places += map(Path, spec.submodule_search_locations)
    found = {path.name: path for place in places for path in sorted(place.rglob("*.*")) if path.name in CAPTIONS}
    if len(found) < 20:
        pytest.skip(f"{len(found)} of 20 photos are installed: name a folder of them in KG_PHOTOS")
    folder = tmp_path_factory.mktemp("photos")
    for name, path in found.items():
        with Image.open(path) as image:  # what it is called is not what it always is
            image.convert("RGB").save(folder / f"{Path(name).stem}.jpg", quality=92)
        (folder / f"{Path(name).stem}.txt").write_text(CAPTIONS[name] + "\n")
    return folder


def build(kg, photos, tmp_path):
    """Import the photos and build compositional samples of them, with models at toy size; returns the command's end."""
    ran = kg("data", "import", "folder", photos, "--to", "pairs", "--rows-per-shard", 8)
    assert ran.code == 0, ran.err
    blip2 = tiny_stages.write_blip2(tmp_path / "blip2")
    checker = tiny_stages.write_classifier(tmp_path / "classifier")
    clipseg = write_clipseg(tmp_path / "clipseg", bias=1.0)
    settings = [
        f"segmenter={{use: clipseg, model: {clipseg}, size: 64}}",
        f"safety=[{{use: classifier, model: {checker}, refuse: [nsfw], threshold: 0.99}}]",
        f"captioner={{use: model, model: {blip2}, keep_given: true}}",
        "filters=[{use: size, at_least: 100}, {use: aspect, at_most: 3}, {use: blank}, {use: duplicates}]",
        "size=128",
    ]
    flags = [word for one in settings for word in ("-s", one)]
    built = kg("data", "build", "compositional", "pairs", "--to", "built", *flags)
    assert built.code == 0, built.err
    return ran


@pytest.mark.slow
def test_a_strangers_photos_go_through_every_command(kg, photos, tmp_path):
    num = len(list(photos.glob("*.jpg")))
    ran = build(kg, photos, tmp_path)
    assert ran.lines[0] == f"{num} rows in {-(-num // 8)} shards", ran.out + ran.err
    assert kg("data", "validate", "pairs").lines[-1].endswith("no faults")
    stats = json.loads(kg("data", "stats", "pairs", "--json").out)
    assert stats["rows"] == num and stats["faults"] == 0 and stats["repeated_images"] == 0
    table = json.loads((tmp_path / "built" / "yield.json").read_text())
    assert table.pop("input") == num == sum(table.values()) and table["kept"] >= num - 4
    assert kg("data", "validate", "built").lines[-1].endswith("no faults")
    for shard in sorted((tmp_path / "built").glob("*.tar")):
        for row in read_rows(shard):
            for entity in row.record.entities:
                assert row.record.caption[slice(*entity.span)].lower().startswith(entity.noun.lower())
    ran = kg("data", "show", "built", "-o", "sheet.html", "-n", 30)
    page = (tmp_path / "sheet.html").read_text()
    assert ran.code == 0 and page.count("<article") == table["kept"] and "<mark>" in page


@pytest.mark.slow
def test_every_stage_takes_a_step_on_them(kg, photos, tmp_path):
    build(kg, photos, tmp_path)
    for stage in ("vae", "clip", "unet"):
        ran = kg("base", stage, f"smoke/{stage}", "steps=1")
        assert ran.code == 0, ran.err
    sources = {"pretrain": ["pairs"], "align": ["pairs"], "instruct": ["built", "pairs"]}
    for stage, folders in sources.items():
        listed = ", ".join(f"{{kind: shards, path: {folder}}}" for folder in folders)
        data = f"data={{sources: [{listed}], batch_size: 4, num_workers: 0}}"
        ran = kg(stage, f"smoke/{stage}", data, "steps=1", "sample_every=9", "options={}")
        assert ran.code == 0, ran.err
        (row,) = [
            json.loads(line) for line in (tmp_path / f"runs/smoke/{stage}/metrics.jsonl").read_text().splitlines()
        ]
        assert row["step"] == 1
