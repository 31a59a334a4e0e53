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
