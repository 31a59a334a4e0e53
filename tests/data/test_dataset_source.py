"""Laws of Hugging Face datasets as training data, from folders of this machine."""

import io
from collections import Counter

import numpy as np
import pytest
from foreign_shards import encoded, solid

from kgcli.data.sources import open_source
from kgcli.errors import MissingError, UsageError
from kgcli.recipe import DataConfig, load_recipe

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def opened(path, use="generate", faults="stop", **own):
    data = {"sources": [{"kind": "dataset", "path": str(path), **own}], "batch_size": 4, "faults": faults}
    return open_source(DataConfig.model_validate(data), 64, use)


def rows(num=7, image="image", caption="caption"):
    return datasets.Dataset.from_dict(
        {image: [{"bytes": encoded(solid(n), "png"), "path": None} for n in range(num)],
         caption: [f"{n} thing" for n in range(num)]},
        features=datasets.Features({image: datasets.Image(), caption: datasets.Value("string")}),
    )  # fmt: skip


@pytest.fixture(params=["parquet", "saved", "splits", "imagefolder"])
def folder(request, tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    if request.param == "parquet":
        rows().to_parquet(path / "train-00000.parquet")
    elif request.param == "saved":
        rows().save_to_disk(path)
    elif request.param == "splits":
        datasets.DatasetDict({"train": rows(), "test": rows(2)}).save_to_disk(path)
    else:
        lines = [f'{{"file_name": "{n}.png", "caption": "{n} thing"}}' for n in range(7)]
        (path / "metadata.jsonl").write_text("\n".join(lines))
        for n in range(7):
            solid(n).save(path / f"{n}.png")
    return path


def test_a_folder_of_any_of_its_formats_is_read(folder):
    source = opened(folder)
    numbers = [int(source.sample(number).caption.split()[0]) for number in range(7 * 5 + 2)]
    assert set(Counter(numbers).values()) == {5, 6}
    sample = source.sample(3)
    assert np.array_equal(np.asarray(sample.render(8).image), np.asarray(solid(numbers[3])))
    assert source.gives == {"fragments", "caption", "target"} and sample.fragments == (sample.caption,)
    assert opened(folder, "read").sample(3).fragments == (None, f" {sample.caption}")
    assert opened(folder, "match").gives == {"caption", "images", "target"}


@pytest.mark.parametrize("name", ["a.tsv", "train.txt", "data/train-00000-of-00001.arrow", "a.CSV", "a.ndjson"])
def test_texts_of_any_format_are_read(name, tmp_path):
    path = tmp_path / "set" / name
    path.parent.mkdir(parents=True)
    words = [f"{number} things, all red" for number in range(5)]
    data = datasets.Dataset.from_dict({"caption": words})
    if path.suffix == ".arrow":
        data.save_to_disk(tmp_path / "saved")
        (next((tmp_path / "saved").glob("*.arrow"))).rename(path)
    elif path.suffix in (".tsv", ".CSV"):
        data.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".ndjson":
        data.to_json(path)
    else:
        path.write_text("\n".join(words))
        (tmp_path / "set" / "README.md").write_text("# of no row")
    source = opened(tmp_path / "set")
    assert [source.read(row).caption for row in range(source.num_rows)] == words


def test_texts_beside_images_are_no_rows(tmp_path):
    (tmp_path / "set").mkdir()
    solid(1).save(tmp_path / "set" / "a.png")
    for name in ("a.txt", "LICENSE.txt", "notes.txt"):
        (tmp_path / "set" / name).write_text("words")
    assert opened(tmp_path / "set").gives == {"target"}


def test_columns_may_have_any_name(tmp_path):
    tmp_path = tmp_path / "set"  # pytest's own folder begins with a split's name
    tmp_path.mkdir()
    rows(image="photo", caption="title").to_parquet(tmp_path / "train.parquet")
    source = opened(tmp_path, columns={"image": "photo", "caption": "title"})
    assert source.gives == {"fragments", "caption", "target"}
    assert opened(tmp_path, columns={"caption": "title"}).gives == {"fragments", "caption"}
    with pytest.raises(UsageError, match="has the columns photo, title: name its image or caption"):
        opened(tmp_path)
    with pytest.raises(UsageError, match="has no column image; it has photo, title"):
        opened(tmp_path, columns={"image": "image"})


def test_cells_that_are_no_caption_teach_no_tokenizer(tmp_path):
    (tmp_path / "set").mkdir()
    lines = ['{"caption": "a cat"}', '{"caption": null}', '{"caption": " "}']
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(lines))
    assert opened(tmp_path / "set", faults="skip").texts(9, 0) == ["a cat"]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingError, match=r"nobody/nothing cannot be opened"):
        opened("nobody/nothing")
    datasets.DatasetDict({"test": rows(2)}).save_to_disk(tmp_path / "a")
    with pytest.raises(MissingError, match="has no split train; it has test"):
        opened(tmp_path / "a")
    assert opened(tmp_path / "a", split="test").num_rows == 2


def test_a_broken_image_is_replaced(tmp_path):
    given = rows(5).cast_column("image", datasets.Image(decode=False)).to_dict()
    given["image"][2] = {"bytes": b"no image", "path": None}
    buffer = io.BytesIO()
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(given, features=features).to_parquet(buffer)
    tmp_path = tmp_path / "set"
    tmp_path.mkdir()
    (tmp_path / "train.parquet").write_bytes(buffer.getvalue())
    samples = [opened(tmp_path, faults="skip").sample(number) for number in range(50)]
    assert {sample.caption[0] for sample in samples} == set("0134")
    assert {fault.row for sample in samples for fault in sample.faults} == {"2"}
    with pytest.raises(MissingError, match="row 2: its image is not an image"):
        opened(tmp_path).read(2)


def test_the_name_of_a_dataset_is_no_path_of_the_recipes_folder(tmp_path):
    recipe = "stage: align\noutput_dir: x\nsteps: 1\ndata:\n  batch_size: 4\n  sources:\n"
    for place, expected in (("nobody/set", "nobody/set"), ("here", str(tmp_path / "here"))):
        (tmp_path / "here").mkdir(exist_ok=True)
        (tmp_path / "a.yaml").write_text(recipe + f"  - {{kind: dataset, path: {place}}}\n")
        assert load_recipe(str(tmp_path / "a.yaml")).data.sources[0].path == expected
    (tmp_path / "a.yaml").write_text(recipe + "  - {kind: shards, path: 's3://bucket/{0..3}.tar'}\n")
    assert load_recipe(str(tmp_path / "a.yaml")).data.sources[0].path == "s3://bucket/{0..3}.tar"


def foreign_folder(tmp_path):
    """Return a folder whose README.md names a file outside it."""
    (tmp_path / "private").mkdir()
    rows(2, caption="secret").to_parquet(tmp_path / "private" / "x.parquet")
    folder = tmp_path / "set"
    folder.mkdir()
    files = f"configs:\n- config_name: default\n  data_files: {tmp_path}/private/x.parquet\n"
    (folder / "README.md").write_text(f"---\n{files}---\n")
    return folder


def test_the_readme_of_a_folder_chooses_no_file(tmp_path):
    folder = foreign_folder(tmp_path)
    with pytest.raises(MissingError, match="holds no parquet"):
        opened(folder, columns={"caption": "secret"})
    rows(5).to_parquet(folder / "a [1].parquet")
    assert opened(folder).num_rows == 5


def test_a_link_out_of_a_folder_is_no_data_file(tmp_path):
    folder = foreign_folder(tmp_path)
    (folder / "x.parquet").symlink_to(tmp_path / "private" / "x.parquet")
    with pytest.raises(MissingError, match="leads out of"):
        opened(folder, columns={"caption": "secret"})


def test_a_saved_dataset_names_no_file_elsewhere(tmp_path):
    rows(2).save_to_disk(tmp_path / "private")
    rows(3).save_to_disk(tmp_path / "set")
    state = (tmp_path / "set" / "state.json").read_text()
    name = next((tmp_path / "private").glob("*.arrow")).name
    (tmp_path / "set" / "state.json").write_text(state.replace(name, f"../private/{name}"))
    with pytest.raises(MissingError, match="which is not in its folder"):
        opened(tmp_path / "set")


def test_a_cell_names_only_files_below_the_folder(tmp_path):
    solid(1).save(tmp_path / "x.png")
    folder = tmp_path / "set"
    folder.mkdir()
    solid(2).save(folder / "y.png")
    places = [tmp_path / "x.png", "../x.png", folder / "y.png"]
    images = [{"bytes": None, "path": str(place)} for place in places]
    features = {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    found = datasets.Dataset.from_dict({"image": images, "caption": ["a", "b", "c"]}, features=datasets.Features(
        features | {"caption": datasets.Value("string")}))  # fmt: skip
    found.to_parquet(folder / "train.parquet")
    source = opened(folder)
    for row in (0, 1):
        with pytest.raises(MissingError, match="not a path below"):
            source.load(row, row)
    assert source.load(2, 2).caption == "c"


def test_splits_are_found_in_names(tmp_path):
    for name, num in (("data/train-00000-of-00001", 3), ("data/extra-00000-of-00001", 2)):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        rows(num).to_parquet(tmp_path / "a" / f"{name}.parquet")
    assert opened(tmp_path / "a").num_rows == 3 and opened(tmp_path / "a", split="extra").num_rows == 2
    for name, num in (("val", 3), ("my-test", 2)):
        (tmp_path / "b" / name).mkdir(parents=True)
        rows(num).to_parquet(tmp_path / "b" / name / "x.parquet")
    assert opened(tmp_path / "b", split="validation").num_rows == 3
    with pytest.raises(MissingError, match="has no split train; it has test, validation"):
        opened(tmp_path / "b")
