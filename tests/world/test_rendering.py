"""Laws of the renderer: images are functions of their specs, and everything a caption names can be seen."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from kgcli.data.sources import world as samples
from kgcli.errors import MissingError
from kgcli.world import bank, oklab, scenes, subjects
from kgcli.world.rendering import crop, render, stands_out, stylize
from kgcli.world.spec import NUM_VARIANTS, Placed, Spec, Subject, draw_spec, place
from kgcli.world.tables import ACCESSORIES, GLYPHS, NOUNS, SCENES, SIZE, STYLES

CAT = Placed(Subject("cat", 12), x=0.5, y=0.53, side=0.75, tilt=0.0, flip=False)


def pixels(image):
    return np.asarray(image, np.float32)


def distance(one, other):
    return distance_of(render(one).image, render(other).image)


def distance_of(one, other):
    return np.abs(pixels(one) - pixels(other)).max(-1)


@pytest.mark.parametrize("style", [*STYLES, "comic"])
def test_the_same_spec_is_the_same_image_and_other_sizes_are_resized(style):
    spec = Spec((CAT,), "beach", style, 3)
    whole, half = render(spec), render(spec, SIZE // 2)
    assert whole.image.tobytes() == render(spec).image.tobytes()
    assert whole.image.size == (SIZE, SIZE)
    assert half.image.tobytes() == whole.image.resize((SIZE // 2, SIZE // 2), Image.Resampling.BICUBIC).tobytes()
    assert half.masks[0].size == (SIZE // 2, SIZE // 2)
    assert np.abs(2 * np.array(half.boxes) - np.array(whole.boxes)).max() <= 2


@pytest.mark.parametrize("size", [SIZE // 2, SIZE, 2 * SIZE])
def test_a_finished_image_takes_a_style_at_its_own_size(size):
    plain, comic = (render(Spec((CAT,), "beach", style, 3), size).image for style in ("photo", "comic"))
    assert stylize(plain, "comic").size == (size, size)
    assert distance_of(stylize(plain, "comic"), comic).mean() < (2 if size == SIZE else 8)


@pytest.mark.parametrize("size", [SIZE // 2, SIZE])
def test_the_style_of_a_photo_changes_nothing(size):
    plain = render(Spec((CAT,), "beach", "photo", 3), size).image
    assert stylize(plain, "photo").tobytes() == plain.tobytes()


def test_an_image_that_is_not_square_is_no_render():
    with pytest.raises(AssertionError, match="128 x 64"):
        stylize(Image.new("RGB", (128, 64)), "oil")


def test_a_variant_is_one_of_the_views_of_a_scene():
    assert NUM_VARIANTS % scenes.NUM_VIEWS == 0  # each view is drawn as often
    one, other = (scenes.background("city", variant) for variant in (5, 5 + scenes.NUM_VIEWS))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("name", sorted(GLYPHS))
def test_the_bank_holds_a_sprite_of_every_glyph(name):
    alpha = pixels(bank.sprite(name).getchannel("A")) > 128
    assert alpha.any(0).mean() > 0.99 or alpha.any(1).mean() > 0.99  # it fills its cell one way
    assert 0.1 < alpha.mean() < 0.95


def test_the_bank_is_cut_from_the_pinned_package_alone(tmp_path):
    other = tmp_path / "package.tgz"
    other.write_bytes(b"another release")
    with pytest.raises(MissingError, match="has sha256 .* the sprite bank is cut from c1bb"):
        bank.build_bank(other, tmp_path / "bank.webp")
    with pytest.raises(MissingError, match="npm pack @lobehub/fluent-emoji-3d@1.1.0"):
        bank.build_bank(tmp_path / "absent.tgz", tmp_path / "bank.webp")


def test_colours_come_back_from_oklab():
    rgb = np.random.default_rng(0).random((4, 100, 3)).astype(np.float32)
    assert np.abs(oklab.to_rgb(oklab.from_rgb(rgb)) - rgb).max() < 2e-3
    white, black = oklab.from_rgb(np.array([[1, 1, 1], [0, 0, 0]], np.float32))
    assert white == pytest.approx([1, 0, 0], abs=1e-3)
    assert black == pytest.approx([0, 0, 0], abs=1e-3)


@pytest.mark.parametrize("scene", [*SCENES, "blocks"])
def test_a_scene_has_many_views_within_range(scene):
    views = [scenes.background(scene, variant) for variant in range(3)]
    assert all(view.shape == (SIZE, SIZE, 3) and 0 <= view.min() <= view.max() <= 1 for view in views)
    assert (np.abs(views[0] - views[1]).max() > 0.05) == (scene != "studio")


def test_scenes_are_told_apart_by_their_colours():
    means = {name: scenes.background(name, 0).reshape(4, 32, 4, 32, 3).mean((1, 3)) for name in SCENES}
    for name, mean in means.items():
        assert all(np.abs(mean - other).max() > 0.1 for key, other in means.items() if key != name)


@pytest.mark.parametrize("style", [*STYLES, "comic"])
def test_every_style_but_photo_changes_the_image(style):
    changed = distance(Spec((CAT,), "beach", "photo", 1), Spec((CAT,), "beach", style, 1))
    assert (changed.mean() > 10) == (style != "photo")


@pytest.mark.parametrize("accessory", sorted(ACCESSORIES))
def test_an_accessory_is_seen_and_belongs_to_the_mask(accessory):
    worn = dataclasses.replace(CAT, subject=Subject("cat", 12, accessory))
    changed = distance(Spec((CAT,), "studio"), Spec((worn,), "studio")) > 40
    assert changed.mean() > 0.02
    (mask,) = render(Spec((worn,), "studio")).masks
    assert pixels(mask)[changed].mean() > 150


def test_a_body_takes_its_colour_and_keeps_its_eyes():
    red, blue = (subjects.body("cat", Subject("cat", 12, None, colour).look) for colour in ("red", "blue"))
    ink = pixels(red.getchannel("A")) > 200
    hue = pixels(red)[ink][:, :3].mean(0) - pixels(blue)[ink][:, :3].mean(0)
    assert hue[0] > 60 > -60 > hue[2]
    assert pixels(red)[ink][:, :3].max(-1).min() < 80  # eyes


@pytest.mark.parametrize("scene", sorted(SCENES))
def test_masks_and_boxes_are_where_the_subjects_are(scene):
    spec = Spec(place([Subject("cat", 12), Subject("rocket", 5), Subject("owl", 9)], np.random.default_rng(4)), scene)
    rendered = render(spec)
    assert [box[0] for box in rendered.boxes] == sorted(box[0] for box in rendered.boxes)
    for mask, (left, top, right, bottom) in zip(rendered.masks, rendered.boxes, strict=True):
        rows, columns = np.nonzero(pixels(mask) > 40)
        assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    covered = np.max([pixels(mask) for mask in rendered.masks], axis=0)
    change = pixels(rendered.image) - pixels(render(Spec((), scene)).image)
    assert (np.abs(change).max(-1)[covered == 255] > 2).mean() > 0.95
    around = change[covered == 0]
    assert around.max() <= 0 and (around.min(-1) < -40).mean() < 0.08  # shadows alone, most of them soft
    bare = crop(rendered, 1, 64, keep_background=False)
    assert (pixels(bare)[0, 0] == 255).all()


def test_a_body_in_the_colour_of_its_scene_does_not_stand_out():
    plain = [i for i in range(200) if Subject("whale", i).look.pattern == "plain"][0]
    blue, orange = (
        dataclasses.replace(CAT, subject=Subject("whale", plain, None, name)) for name in ("blue", "orange")
    )
    assert not stands_out(Spec((blue,), "ocean"))
    assert stands_out(Spec((orange,), "ocean"))


@pytest.mark.parametrize(("kind", "num"), [("one", 1), ("two", 2), ("three", 3)])
def test_numbered_kinds_show_and_name_that_many_subjects(kind, num):
    for index in range(12):
        sample = samples.draw({kind: 1.0}, 5, index, SIZE)
        nouns = [placed.subject.noun for placed in sample.truth.spec.subjects]
        assert len(nouns) == num
        assert all(noun in sample.caption for noun in nouns)
        assert len(sample.caption.split()) <= 28
        assert stands_out(sample.truth.spec)


def test_every_noun_renders():
    rng = np.random.default_rng(0)
    for noun in NOUNS:
        spec = draw_spec(rng, [noun], new=True, accessory=0.0)
        (mask,) = render(spec).masks
        assert 0.08 < (pixels(mask) > 128).mean() < 0.75


@pytest.mark.parametrize("kind", ["captioned", "compositional", "edit", "caption"])
def test_what_is_to_be_generated_stands_out_and_its_caption_is_read_whole(kind):
    for index in range(6):
        sample = samples.draw({kind: 1.0}, 3, index, SIZE)
        assert stands_out(sample.truth.spec)
        assert len(sample.caption.split()) <= 28
        assert all(image.size == (SIZE, SIZE) for image in sample.images)
