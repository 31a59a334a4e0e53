"""Laws of a rendered pool: its images are those of the recipe's samples, however often rendering was stopped."""

import json
import shutil

import numpy as np
import pytest
import torch

from kgcli.data.batch import Collator
from kgcli.data.images import to_vae_pixels
from kgcli.data.loader import Batches
from kgcli.data.pool import PoolImages
from kgcli.data.sources import open_source, rendered
from kgcli.data.sources.rendered import make_rendered
from kgcli.data.sources.world_source import WorldSource
from kgcli.errors import BusyError, ConfigError
from kgcli.files import locked
from kgcli.recipe import DataConfig
from kgcli.training.loop import train

SIZE, NUM = 128, 6


def source(folder, **changes):
    values = {"kinds": {"one": 0.5, "two": 0.5}, "pool": NUM, "batch_size": 4, **changes}
    return open_source(DataConfig(rendered=str(folder) if folder else None, **values), SIZE, "generate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    make_rendered(folder, source(folder), SIZE)
    return folder


def test_a_pool_holds_the_images_and_masks_of_its_draws(folder):
    fresh, read = source(None), source(folder)
    for row in (0, 5):
        wanted, found = fresh.read(row).render(SIZE), read.read(row).render(SIZE)
        assert np.array_equal(found.image, wanted.image)
        assert len(found.masks) == 1
    wanted, found = (PoolImages(one, *one.parts(), SIZE, 16)[3] for one in (fresh, read))
    assert torch.equal(found[0], wanted[0])
    assert (found[1].float() - wanted[1].float()).abs().mean() < 3


def test_batches_read_it_and_never_render(folder, monkeypatch):
    monkeypatch.setattr("kgcli.data.sources.world_sample.render", None)
    batch = Batches(source(folder), Collator(frozenset({"targets"}), SIZE, 0), batch_size=4)[1]  # rows 4, 5, 0, 1
    images = np.load(folder / "images.npy")[[4, 5, 0, 1]]
    wanted = [to_vae_pixels(rendered.Image.fromarray(image), SIZE) for image in images]
    assert torch.equal(batch.targets, torch.from_numpy(np.stack(wanted)))


def test_an_image_has_the_captions_of_its_first_two_samples_and_no_scene_is_drawn_again(folder, monkeypatch):
    fresh, read = source(None), source(folder)
    wanted = [fresh.sample(i).caption for i in (0, 1, 6, 7, 0, 1)]
    assert len({*wanted}) == 4
    monkeypatch.setattr(read.source, "sample", None)
    assert [read.sample(i).caption for i in (0, 1, 6, 7, 12, 13)] == wanted


def test_captions_are_drawn_where_the_folder_has_none_or_samples_hold_more(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    (tmp_path / "old" / rendered.CAPTIONS).unlink()
    fresh, read = source(None), source(tmp_path / "old")
    (tmp_path / "old" / rendered.CAPTIONS).write_text('1\n["of another wording"]\n')
    assert not source(tmp_path / "old")._captions
    assert [read.sample(i).caption for i in (0, 6, 12)] == [fresh.sample(i).caption for i in (0, 6, 12)]
    assert np.array_equal(read.sample(6).render(SIZE).image, fresh.sample(6).render(SIZE).image)
    prompts = {"kinds": {"compositional": 1.0}}
    make_rendered(tmp_path / "prompts", source(tmp_path / "prompts", **prompts), SIZE)
    assert source(tmp_path / "prompts", **prompts).sample(7).images


def test_images_of_another_renderer_are_refused_and_those_of_the_worlds_size_stay(folder, tmp_path):
    made_of = json.loads((folder / rendered.MADE_OF).read_text())
    assert made_of == {"kinds": {"one": 0.5, "two": 0.5}, "seed": 0, "num": NUM, "image_size": SIZE}
    small = WorldSource({"one": 1.0}, seed=0, image_size=64, pool=2)
    make_rendered(tmp_path, small, 64)
    made_of = json.loads((tmp_path / rendered.MADE_OF).read_text())
    assert made_of.pop("renderer") == 2
    make_rendered(tmp_path, small, 64)
    (tmp_path / rendered.MADE_OF).write_text(json.dumps(made_of))  # as the first renderer's were
    with pytest.raises(ConfigError, match="holds images of another source"):
        make_rendered(tmp_path, small, 64)


def test_a_part_of_a_mixture_tells_its_renderer_too():
    for size, told in ((SIZE, {}), (64, {"renderer": 2})):
        (part,) = WorldSource({"one": 1.0}, seed=3, image_size=size, pool=2).parts()
        assert part.fingerprint == {"kinds": {"one": 1.0}, "seed": 3, "num": 2, **told}


def test_another_size_than_the_rendered_one_is_rendered_anew(folder):
    assert source(folder).read(0).render(64).image.size == (64, 64)


def test_a_recipe_renders_what_is_missing_but_not_in_a_dry_run(smoke_recipe, tmp_path):
    recipe = smoke_recipe(tmp_path)
    assert "targets" in train(recipe, dry_run=True)
    assert not (tmp_path / "images").exists()
    train(recipe)
    assert len(np.load(tmp_path / "images/images.npy")) == recipe.data.pool


def test_rows_kept_in_memory_do_not_decide_the_captions_in_the_folder(smoke_recipe, tmp_path):
    train(smoke_recipe(tmp_path, "data.kinds={one: 1.0}", "data.keep=true"))
    _, *lines = (tmp_path / "images" / rendered.CAPTIONS).read_text("utf-8").splitlines()
    assert all(len(captions) == 2 for captions in map(json.loads, lines))
    assert sum(first != second for first, second in map(json.loads, lines)) >= 6  # of 8


@pytest.fixture
def smoke_recipe():
    from kgcli.recipe import load_recipe

    def load(folder, *overrides):
        pool = ["data.pool=8", f"data.rendered={folder / 'images'}", "data.num_workers=0"]
        run = ["steps=1", "data.batch_size=2", f"output_dir={folder / 'run'}"]
        return load_recipe("smoke/vae", [*run, *pool, *overrides])

    return load


def test_an_interrupted_rendering_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(rendered, "_CHUNK", 2)
    other, seen = source(tmp_path), []
    original = other.sample

    def stop(index):
        if index < NUM:
            seen.append(index)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return original(index)

    monkeypatch.setattr(other, "sample", stop)
    with pytest.raises(KeyboardInterrupt):
        make_rendered(tmp_path, other, SIZE)
    assert json.loads((tmp_path / "partial.json").read_text("utf-8"))["done"] == 4
    assert not (tmp_path / "images.npy").exists()
    make_rendered(tmp_path, other, SIZE)
    assert seen[5:] == [4, 5]
    assert np.array_equal(np.load(tmp_path / "images.npy"), np.load(folder / "images.npy"))
    assert (tmp_path / rendered.CAPTIONS).read_bytes() == (folder / rendered.CAPTIONS).read_bytes()
    assert not (tmp_path / "partial.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "holds images of another source or seed; name another folder in data.rendered"),
        ({"kinds": {"text": 1.0}}, "not all samples of this recipe's kinds have an image"),
    ],
)
def test_a_pool_that_does_not_fit_its_recipe_is_one_clear_error(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_rendered(folder, source(folder, **changes), SIZE)


def test_a_rendered_pool_needs_its_number_of_images():
    with pytest.raises(ValueError, match="give kinds, and pool, their number"):
        source("images", pool=None)


def test_two_processes_do_not_render_into_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(BusyError, match="another kg is at work"):
        make_rendered(tmp_path, source(tmp_path), SIZE)
