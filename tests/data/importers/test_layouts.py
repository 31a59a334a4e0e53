import io
import json
import zipfile

import foreign
import pyarrow.parquet
import pytest
from foreign import base64_image, image_bytes
from foreign_shards import write_tar
from PIL import Image

from kgcli.data.images import decode_image
from kgcli.data.importers import documents
from kgcli.data.importers.base import ImportOptions, Skipped
from kgcli.data.importers.documents import UrlImages
from kgcli.data.importers.table import IMPORTERS, find_importer
from kgcli.data.shards.records import Shown
from kgcli.errors import KgError, MissingError, UsageError


def read(name, source, **options):
    """The records of a source, its faults and what its rules leave out."""
    found, faults, skipped = [], [], []
    for item in find_importer(name).items(str(source), ImportOptions(**options)):
        try:
            found += list(item.read())
        except KgError as error:
            faults.append(str(error))
        except Skipped as rule:
            skipped.append(str(rule))
    for record, images in found:
        assert set(images) == set(record.images), "every image is named and given"
    return found, faults, skipped


def test_instructpix2pix_gives_an_edit_for_each_seed(tmp_path):
    foreign.write_instructpix2pix(tmp_path)
    found, faults, _ = read("instructpix2pix", tmp_path)
    assert not faults
    assert [record.origin for record, _ in found] == [
        "shard-00/0000000 seed 11",
        "shard-00/0000000 seed 12",
        "shard-00/0000001 seed 7",
    ]
    record, images = found[0]
    assert (record.caption, record.instruction) == ("a photo 0", "make it snow")
    assert images[record.before] == image_bytes(22) and images[record.after] == image_bytes(23)


def test_a_strangers_seeds_do_not_lead_out_of_the_folder(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "prompt.json").write_text(json.dumps({"input": "a", "edit": "b"}))
    (tmp_path / "data").mkdir()
    entries = [["../secret", ["1"]], [str(tmp_path / "secret"), ["1"]], ["link", ["1"]], 7, ["x"]]
    (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "data" / "seeds.json").write_text(json.dumps(entries))
    found, faults, _ = read("instructpix2pix", tmp_path / "data")
    assert not found and len(faults) == 5
    assert sum("not a path below" in fault or "link that leads out" in fault for fault in faults) == 3


def test_coco_takes_the_first_caption_or_all(tmp_path):
    foreign.write_coco(tmp_path)
    found, faults, _ = read("coco", tmp_path / "captions.json", images=tmp_path / "train2017")
    assert [record.caption for record, _ in found] == ["A cat.", "A dog."]
    assert len(faults) == 1 and "000000000030.jpg" in faults[0]
    found, _, _ = read("coco", tmp_path / "captions.json", images=tmp_path / "train2017", all_captions=True)
    assert [record.caption for record, _ in found] == ["A cat.", "The cat.", "A dog."]
    with pytest.raises(UsageError, match="--images"):
        read("coco", tmp_path / "captions.json")


def test_open_images_are_turned_upright_and_captioned_where_narratives_are_given(tmp_path):
    names = foreign.write_open_images(tmp_path)
    source = tmp_path / "train-images.csv"
    columns = {"captions": str(tmp_path / "narratives.jsonl")}
    found, faults, _ = read("open-images", source, images=tmp_path / "images", columns=columns)
    assert [(record.origin, record.caption) for record, _ in found] == [(names[0], "Red."), (names[1], "")]
    assert [decode_image(images["jpg"]).size for _, images in found] == [(32, 16), (16, 32)]
    assert len(faults) == 1 and "no ImageID" in faults[0]


@pytest.mark.parametrize("as_files", [False, True])
def test_img2dataset_gives_what_was_downloaded_and_names_the_rest(tmp_path, as_files):
    folder = tmp_path / "laion"
    foreign.write_img2dataset(folder)
    if as_files:
        import tarfile

        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path) as tar:
                tar.extractall(folder / path.stem, filter="data")
            path.unlink()
    found, faults, skipped = read("img2dataset", folder)
    assert [record.caption for record, _ in found] == [f"caption {number}" for number in (0, 1, 3, 4)]
    assert found[2][1]["jpg"] == image_bytes(3) and "https://example.org/3.jpg" in found[2][0].origin
    assert not faults and skipped == ([] if as_files else ["it was not downloaded"] * 2)


def test_a_cut_tar_gives_what_comes_before_the_cut_and_is_named(tmp_path):
    foreign.write_img2dataset(tmp_path / "x", num_shards=1, per_shard=5)
    tar = tmp_path / "x" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    found, faults, _ = read("img2dataset", tmp_path / "x")
    assert 0 < len(found) < 4 and len(faults) == 1 and "00000.tar is damaged after 00000" in faults[0]
    (tmp_path / "x" / "00000.tar").write_bytes(b"no tar at all")
    assert read("img2dataset", tmp_path / "x")[1][0].startswith("00000.tar is damaged")


@pytest.mark.parametrize("zipped", [False, True])
def test_mmc4_puts_each_image_before_its_sentence(tmp_path, zipped):
    foreign.write_mmc4(tmp_path)
    source = tmp_path / "docs_shard_0_v2.jsonl"
    if zipped:
        with zipfile.ZipFile(tmp_path / "docs.zip", "w") as archive:
            archive.write(source, source.name)
        source = tmp_path / "docs.zip"
    found, faults, skipped = read("mmc4", source, images=tmp_path / "images")
    record, images = found[0]
    assert record.fragments == (Shown(image="0.jpg"), " A cat.", Shown(image="1.png"), " It sleeps.", " The end.")
    assert images["0.jpg"] == image_bytes(1)
    assert len(found) == 1 and len(faults) == 1 and skipped == ["none of its images is there"]


@pytest.mark.parametrize("name", ["a" * 300 + ".jpg", "a/" * 3000 + "b.jpg", "a\0b.jpg", "ring/b.jpg"])
def test_a_name_that_no_file_can_have_is_a_fault_of_its_line_alone(tmp_path, name):
    (tmp_path / "a.png").write_bytes(image_bytes(1, suffix="png"))
    (tmp_path / "ring").symlink_to("ring")
    lines = [{"image": one, "caption": "a cat"} for one in (name, "a.png")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    found, faults, _ = read("table", tmp_path / "a.jsonl")
    assert len(found) == 1 and len(faults) == 1 and "line 1 names the image" in faults[0]
    documents = [
        {"text_list": ["A cat."], "image_info": [{"matched_text_index": 0, "image_name": one}]}
        for one in (name, "a.png")
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    found, faults, _ = read("mmc4", tmp_path / "d.jsonl", images=tmp_path)
    assert len(found) == 1 and len(faults) == 1 and "line 1 names the image" in faults[0]


def test_obelics_finds_images_by_their_address_and_fetches_none(tmp_path):
    foreign.write_obelics(tmp_path / "docs")
    foreign.write_img2dataset(tmp_path / "images")
    found, faults, skipped = read("obelics", tmp_path / "docs", images=tmp_path / "images")
    assert not faults and len(skipped) == 1
    record, images = found[0]
    assert record.fragments == (Shown(image="0.jpg"), "A cat.", "A dog.") and images["0.jpg"] == image_bytes(0)
    assert read("obelics", tmp_path / "docs")[2] == ["none of its images is there"] * 2


def test_obelics_needs_no_captions_of_its_images(tmp_path):
    caption = "un caf\xe9".encode("latin-1")
    told = json.dumps({"url": "https://example.org/0.jpg", "status": "success"}).encode()
    write_tar(tmp_path / "a" / "0.tar", {"0": {"jpg": image_bytes(0), "txt": caption, "json": told}})
    (tmp_path / "b").mkdir()
    for suffix, data in (("jpg", image_bytes(0)), ("txt", caption), ("json", told)):
        (tmp_path / "b" / f"0.{suffix}").write_bytes(data)
    for folder in ("a", "b"):
        images = UrlImages(tmp_path / folder)
        assert not images.faults and images.read("https://example.org/0.jpg") == image_bytes(0)


def test_obelics_notes_its_images_without_reading_them(tmp_path, monkeypatch):
    foreign.write_img2dataset(tmp_path / "images")
    names, whole = [], documents.read_member
    monkeypatch.setattr(documents, "read_member", lambda files, name: names.append(name) or whole(files, name))
    UrlImages(tmp_path / "images")
    assert names and set(names) == {"json"}


def test_obelics_reads_images_when_they_are_needed_and_names_a_cut_tar(tmp_path):
    foreign.write_obelics(tmp_path / "docs")
    foreign.write_img2dataset(tmp_path / "images")
    tar = tmp_path / "images" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    found, faults, _ = read("obelics", tmp_path / "docs", images=tmp_path / "images")
    assert len(found) == 1 and len(faults) == 1 and "00001.tar is damaged" in faults[0]
    images = UrlImages(tmp_path / "images")
    assert images.read("https://example.org/0.jpg") == image_bytes(0)
    assert images.read("https://example.org/99.jpg") is None
    (tmp_path / "images" / "00000.tar").write_bytes(b"")
    with pytest.raises(MissingError, match="00000.tar has become shorter"):
        images.read("https://example.org/0.jpg")


def test_captioned_folders_as_kohya_has_them(tmp_path):
    folder = tmp_path / "photos" / "10_cat"
    folder.mkdir(parents=True)
    for name, caption in (("a.jpg", "a.txt"), ("b.png", "b.caption"), ("c.jpg", None)):
        (folder / name).write_bytes(image_bytes(1, suffix=name[-3:]))
        if caption:
            (folder / caption).write_text("a cat,\n sleeping\n")
    (folder / "d.jpg").write_bytes(b"broken")
    (folder / "d.txt").write_text("broken")
    found, faults, _ = read("folder", tmp_path / "photos")
    assert [(record.caption, record.image) for record, _ in found] == [
        ("a cat, sleeping", "jpg"),
        ("a cat, sleeping", "png"),
    ]
    assert (
        len(faults) == 2 and "10_cat/c.jpg has no caption" in faults[0] and "10_cat/d.jpg is not an image" in faults[1]
    )


def test_tables_prompts_and_texts(tmp_path):
    (tmp_path / "a.png").write_bytes(image_bytes(1, suffix="png"))
    (tmp_path / "a.csv").write_text("file_name,text\na.png,a cat\n/etc/passwd,no\ngone.png,no\n")
    found, faults, _ = read("table", tmp_path / "a.csv")
    assert [record.caption for record, _ in found] == ["a cat"] and len(faults) == 2
    line = {"prompt": r"a <image:a.png|fit=pad> \< <image:a.png>", "target": "a.png"}
    lines = [line, {"prompt": "<image:-1>"}, {"prompt": "<image:../a.png>"}, {"prompt": "<image:a.png"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    found, faults, _ = read("prompts", tmp_path / "p.jsonl")
    assert found[0][0].prompt == r"a <image:0.png|fit=pad> \< <image:1.png>" and found[0][0].target == "png"
    assert len(found) == 1 and len(faults) == 3
    (tmp_path / "t.txt").write_text("one\n\ntwo\n")
    assert [record.text for record, _ in read("text", tmp_path / "t.txt")[0]] == ["one", "two"]


@pytest.mark.parametrize("layout", ["table", "prompts"])
def test_a_damaged_line_is_a_fault_and_the_next_is_read(tmp_path, layout):
    (tmp_path / "a.png").write_bytes(image_bytes(1, suffix="png"))
    line = json.dumps({"image": "a.png", "caption": "a cat", "prompt": "a <image:a.png>"})
    (tmp_path / "a.jsonl").write_text(f'{line}\n{{"image": \n7\n{line}\n')
    found, faults, _ = read(layout, tmp_path / "a.jsonl")
    assert len(found) == 2
    assert "a.jsonl line 2" in faults[0] and "line 3 is neither a text nor an object" in faults[1]


@pytest.mark.parametrize("on_disk", ["arrow", "parquet"])
def test_hugging_face_data_sets(tmp_path, on_disk):
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [Image.open(io.BytesIO(image_bytes(number, suffix="png"))) for number in range(3)],
        "text": ["zero", "one", "two"],
    }
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    folder = tmp_path / "hf"
    if on_disk == "arrow":
        data.save_to_disk(folder)
    else:
        folder.mkdir()
        data.to_parquet(folder / "train-00000.parquet")
    found, faults, _ = read("hugging-face", folder)
    assert not faults and [record.caption for record, _ in found] == ["zero", "one", "two"]
    with pytest.raises(UsageError, match="no column words"):
        read("hugging-face", folder, columns={"caption": "words"})


def test_a_hugging_face_row_cannot_name_a_file_elsewhere(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "secret.png").write_bytes(image_bytes(1, suffix="png"))
    (tmp_path / "hf").mkdir()
    row = {"image": {"path": str(tmp_path / "secret.png"), "bytes": None}, "text": "x"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "hf" / "train.parquet")
    found, faults, _ = read("hugging-face", tmp_path / "hf")
    assert not found and len(faults) == 1


def test_hugging_face_ids_are_not_fetched_offline(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingError, match="nothing is downloaded offline"):
        read("hugging-face", "somebody/something")


def test_published_laion_rejects_what_the_published_loader_rejects(tmp_path):
    image = base64_image(1)
    sizes = [("512", "512"), ("300", "512"), ("x", "y")]
    foreign.write_tsv(tmp_path / "a.tsv", [["0", "a caption", image, *size] for size in sizes] + [["0", "short"]])
    found, faults, skipped = read("published-laion", tmp_path)
    assert [record.caption for record, _ in found] == ["a caption"]
    assert len(skipped) == 2 and len(faults) == 1 and "2 columns" in faults[0]


def test_an_unknown_layout_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean img2dataset"):
        find_importer("img2datasets")
    assert len(IMPORTERS) == 14
