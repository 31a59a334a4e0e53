"""Laws of users' files as training data: exact shares, nothing but the number decides, faults name file and line."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kgcli.data.sources import examples, open_source
from kgcli.data.sources.mixture import Mixture, Schedule
from kgcli.errors import ConfigError, ImageError, KgError, MissingError, PromptError, UsageError
from kgcli.files import recipes_folder
from kgcli.recipe import DataConfig, dump_recipe, load_recipe

WORDS = ["a cat", "two dogs", "a red car", "an owl at night", "a fox in the snow"]


def write_image(path, colour="red", size=(20, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def config(*sources, **settings):
    return DataConfig.model_validate({"sources": list(sources), "batch_size": 4, **settings})


def opened(*sources, use="generate", **settings):
    return open_source(config(*sources, **settings), 64, use)


def captions(tmp_path, name="captions.txt", num=5):
    path = tmp_path / name
    path.write_text("".join(f"{number} {WORDS[number % 5]}\n" for number in range(num)))
    return {"kind": "captions", "path": str(path)}


# ---------------------------------------------------------------- which sample comes when


@pytest.mark.parametrize("weights", [[1, 2, 2], [0.4, 0.4, 0.2], [1, 1, 1], [0.1, 0.7, 0.33], [5, 1]])
def test_every_source_has_exactly_its_share_and_its_samples_in_turn(weights):
    schedule = Schedule(weights, seed=3)
    taken = [schedule(number) for number in range(2 * schedule.period)]
    for source, weight in enumerate(weights):
        numbers = [number for found, number in taken if found == source]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) == pytest.approx(2 * schedule.period * weight / sum(weights))
    assert schedule.period >= 1000
    assert [source for source, _ in taken[: schedule.period]] != [source for source, _ in taken[schedule.period :]]


def test_shares_that_no_period_holds_are_rounded_and_none_is_lost():
    schedule = Schedule([np.pi, np.e, 1e-9], seed=0)
    counts = Counter(schedule(number)[0] for number in range(schedule.period))
    assert counts[0] / counts[1] == pytest.approx(np.pi / np.e, rel=1e-3)
    assert counts[2] == 1


def test_the_number_is_the_only_state(tmp_path):
    sources = captions(tmp_path), captions(tmp_path, "more.txt", 7) | {"weight": 2}
    through = opened(*sources)
    said = [through.sample(number).caption for number in range(4000)]
    for number in (3999, 17, 2500, 0, 1000):
        assert opened(*sources).sample(number).caption == said[number]
    far = opened(*sources).sample(10**9 + 7)  # at once, without the way there
    assert far == opened(*sources).sample(10**9 + 7)


def test_every_row_is_taken_n_or_one_more_times_and_each_epoch_has_its_own_order(tmp_path):
    source = opened(captions(tmp_path, num=7))
    rows = [source.row_of(number) for number in range(7 * 10 + 3)]
    assert set(Counter(rows).values()) == {10, 11}
    epochs = [tuple(rows[first : first + 7]) for first in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) > 5


def test_rows_of_a_mixture_are_those_of_its_sources(tmp_path):
    source = opened(captions(tmp_path), captions(tmp_path, "more.txt", 7) | {"weight": 3})
    assert isinstance(source, Mixture) and source.num_rows == 12
    for number in range(200):
        assert source.read(source.row_of(number)) == source.sample(number)


def test_the_world_can_be_mixed_with_files(tmp_path):
    world = {"kind": "world", "kinds": {"text": 1.0}, "weight": 3}
    source = opened(captions(tmp_path), world)
    assert source.num_rows is None and source.gives == {"fragments", "caption"}
    origins = Counter(bool(source.sample(number).origin) for number in range(1000))
    assert origins == {True: 250, False: 750}


def test_rows_kept_in_memory_are_read_once(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat")
    source = opened({"kind": "images", "path": str(tmp_path)}, keep=True, use="match")
    assert source.sample(0).images[0] is source.sample(5).images[0]


def test_rows_kept_for_several_loaders_are_read_in_advance_and_bad_ones_left_to_them(tmp_path, monkeypatch):
    for number in range(3):
        write_image(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"{number} cats")
    (tmp_path / "1.png").write_bytes(b"not an image")
    source, told = opened({"kind": "images", "path": str(tmp_path)}, keep=True, use="match"), []
    source.fill(2, told.append)
    kept = {row: source.read(row) for row in (0, 2)}
    assert {sample.caption for sample in kept.values()} == {"0 cats", "2 cats"}
    with pytest.raises(ImageError, match=r"1\.png"):
        source.read(1)
    monkeypatch.setattr(source.source, "read", None)
    assert all(source.read(row) is sample for row, sample in kept.items())
    world = opened({"kind": "world", "kinds": {"compositional": 1.0}}, keep=True, pool=4)
    fresh = {row: world.source.read(row) for row in range(4)}
    world.fill(2, told.append)
    assert all(world.read(row).fragments == fresh[row].fragments for row in fresh)
    assert all(world.read(row).images[0].tobytes() == fresh[row].images[0].tobytes() for row in fresh)


def test_a_broken_file_is_replaced_where_faults_are_skipped(tmp_path):
    for number in range(6):
        write_image(tmp_path / f"{number}.png", size=(20 + number, 12))
        (tmp_path / f"{number}.txt").write_text(f"{number} cats")
    given = {"kind": "images", "path": str(tmp_path)}
    before = [opened(given).sample(number).caption for number in range(60)]
    (tmp_path / "3.png").write_bytes(b"not an image")
    source = opened(given, faults="skip")
    for number, was in enumerate(before):
        sample = source.sample(number)
        if was == "3 cats":
            assert sample.caption != was and sample.faults[0].row == "3.png"
            assert sample.caption == source.sample(number).caption
            assert sample.render(8).image.width == 20 + int(sample.caption[0])
        else:
            assert sample.caption == was and not sample.faults


BAD_LINES = {
    "captions": ('{"caption": "%d things"}', ['{"caption": ', '{"words": "x"}', '{"caption": ""}', "[1]"]),
    "images": (
        '{"image": "a.png", "caption": "%d things"}',
        ['{"image": "gone.png", "caption": "x"}', "{", '{"a": 1}'],
    ),
    "prompts": (
        '{"prompt": "%d things"}',
        ['{"prompt": "<image:a.png"}', '{"prompt": "<image:gone.png>"}', '"x"', "{}"],
    ),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_bad_lines_are_replaced_where_faults_are_skipped(kind, tmp_path):
    write_image(tmp_path / "a.png")
    good, bad = BAD_LINES[kind]
    lines = [good % number for number in range(9)]
    given = {"kind": kind, "path": str(tmp_path / "a.jsonl")}
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    whole = opened(given)
    before = [whole.sample(number).words for number in range(90)]
    for place, line in enumerate(bad, start=2):
        lines[place] = line
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(KgError, match=r"a\.jsonl line 3"):
        opened(given)
    source = opened(given, faults="skip")
    assert source.gives == whole.gives and source.num_rows == whole.num_rows == 9
    gone = {f"{number} things" for number in range(2, 2 + len(bad))}
    found = {}
    for number, was in enumerate(before):
        sample = source.sample(number)
        assert (sample.words == was and not sample.faults) if was.strip() not in gone else sample.faults
        found |= {fault.row: fault.reason for fault in sample.faults}
    assert found.keys() == {f"line {place + 1}" for place in range(2, 2 + len(bad))}
    assert len(source.texts(99, 0)) == 9 - len(bad)
    (tmp_path / "a.jsonl").write_text("\n".join(bad))
    with pytest.raises(MissingError, match="no line that can be read; the first fault"):
        opened(given, faults="skip")


def test_images_without_a_caption_are_replaced_where_faults_are_skipped(tmp_path):
    for number in range(5):
        write_image(tmp_path / f"{number}.png", size=(20 + number, 12))
        (tmp_path / f"{number}.txt").write_text(f"{number} cats")
    given = {"kind": "images", "path": str(tmp_path)}
    before = [opened(given).sample(number).caption for number in range(50)]
    (tmp_path / "1.txt").unlink()
    (tmp_path / "3.txt").write_bytes(b"\xff")
    source = opened(given, faults="skip")
    for number, was in enumerate(before):
        sample = source.sample(number)
        assert sample.faults if was[0] in "13" else sample.caption == was and not sample.faults
    faults = {fault.row: fault.reason for number in range(50) for fault in source.sample(number).faults}
    assert "has no caption" in faults["1.png"] and "not UTF-8" in faults["3.png"] and len(faults) == 2
    with pytest.raises(MissingError, match=r"1\.png has no caption"):
        opened(given)


# ---------------------------------------------------------------- captions


def write_table(path, column):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({column: words, "id": 3}) + "\n" for words in WORDS))
    elif path.suffix == ".txt":
        path.write_text("\n\n".join(WORDS))
    elif path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({column: WORDS, "id": list(range(5))}), path)
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([["id", column], *enumerate(WORDS)])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.parquet"])
@pytest.mark.parametrize("column", ["caption", "text"])
def test_captions_are_read_from_any_table(name, column, tmp_path):
    write_table(tmp_path / name, column)
    source = opened({"kind": "captions", "path": str(tmp_path / name)})
    assert [source.read(row).caption for row in range(source.num_rows)] == WORDS
    assert source.read(1).fragments == ("two dogs",)
    assert source.gives == {"fragments", "caption"}
    assert sorted(source.texts(100, 0)) == sorted(WORDS)


def test_quotes_and_line_breaks_of_csv_are_its_own(tmp_path):
    (tmp_path / "a.csv").write_text('caption,x\n"a cat,\nasleep",1\na dog,2\n')
    source = opened({"kind": "captions", "path": str(tmp_path / "a.csv")})
    assert [source.read(row).caption for row in range(2)] == ["a cat,\nasleep", "a dog"]
    assert [source.read(row).origin.split()[-1] for row in range(2)] == ["3", "4"]  # where each ends


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"caption": "a"}\n\n{"caption": \n', r"a\.jsonl line 3: the line is damaged, not valid JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl line 1 is neither a text nor an object"),
        ("a.jsonl", b'"a"\n{"words": "b"}\n', r"a\.jsonl line 2 has no caption or text; it has words"),
        ("a.jsonl", b'{"caption": 3}\n', r"a\.jsonl line 1: caption is 3; it must be a text"),
        ("a.jsonl", b'{"caption": " "}\n', r"a\.jsonl line 1: caption is ' '"),
        ("a.txt", b"fine\n\xff\n", r"a\.txt line 2: it is not UTF-8 text"),
        ("a.txt", b"\n\n", r"a\.txt is empty"),
        ("a.csv", b"id,words\n1,a cat\n", r"a\.csv line 2 has no caption or text; it has id, words"),
        ("a.csv", b"id,caption\n1,a cat\n2,a,dog\n", r"a\.csv line 3: it has more cells"),
        ("a.csv", b"id,caption\n1\n", r"a\.csv line 2 has no caption or text; it has id"),
        ("a.xml", b"x", r"a\.xml is none of \.txt"),
    ],
)
def test_faults_of_tables_name_file_and_line(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(KgError, match=message):
        opened({"kind": "captions", "path": str(tmp_path / name)})


def test_a_damaged_parquet_file_or_none_is_named(tmp_path):
    with pytest.raises(MissingError, match=r"there is no file or folder .*photos"):  # not: of an unknown kind
        opened({"kind": "images", "path": str(tmp_path / "photos")})
    with pytest.raises(MissingError, match=r"there is no file .*gone\.txt"):
        opened({"kind": "captions", "path": str(tmp_path / "gone.txt")})
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    with pytest.raises((MissingError, UsageError), match=r"a\.parquet (is not a parquet file|needs pyarrow)"):
        opened({"kind": "captions", "path": str(tmp_path / "a.parquet")})


# ---------------------------------------------------------------- images with captions


@pytest.fixture
def photos(tmp_path):
    for number, words in enumerate(WORDS):
        write_image(tmp_path / f"photos/{'deep/' if number % 2 else ''}{number}.png", (number, 0, 0))
        path = tmp_path / f"photos/{'deep/' if number % 2 else ''}{number}.txt"
        path.write_text(words + "\n")
    return {"kind": "images", "path": str(tmp_path / "photos")}


def red(image):
    return image.getpixel((0, 0))[0]


def test_a_folder_holds_captions_beside_its_images(photos):
    source = opened(photos)
    assert source.gives == {"fragments", "caption", "target"} and source.num_rows == 5
    found = {source.read(row).caption: red(source.read(row).render(64).image) for row in range(5)}
    assert found == {words: number for number, words in enumerate(WORDS)}
    assert source.read(0).images == ()


def test_what_an_image_is_used_for_depends_on_the_stage(photos):
    read, match = opened(photos, use="read").read(0), opened(photos, use="match").read(0)
    assert read.fragments[0] is None and read.fragments[1] == " " + read.caption and len(read.images) == 1
    assert match.fragments == () and len(match.images) == 1 and match.caption in WORDS


def test_a_table_names_images_relative_to_itself(tmp_path):
    write_image(tmp_path / "data/images/a.png", (7, 0, 0))
    (tmp_path / "data/list.jsonl").write_text('{"file_name": "images/a.png", "text": "a cat"}\n')
    source = opened({"kind": "images", "path": str(tmp_path / "data/list.jsonl")})
    assert red(source.read(0).render(64).image) == 7
    (tmp_path / "data/list.jsonl").write_text('{"image": "images/b.png", "text": "a cat"}\n')
    with pytest.raises(MissingError, match=r"list\.jsonl line 1: there is no image .*b\.png"):
        opened({"kind": "images", "path": str(tmp_path / "data/list.jsonl")})


def test_images_without_any_captions_are_targets_alone(tmp_path):
    write_image(tmp_path / "a.png")
    assert opened({"kind": "images", "path": str(tmp_path)}).gives == {"target"}
    write_image(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("a dog")
    with pytest.raises(MissingError, match=r"a\.png has no caption, as others have: write it into a\.txt"):
        opened({"kind": "images", "path": str(tmp_path)})
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="holds no images"):
        opened({"kind": "images", "path": str(tmp_path / "empty")})


def test_a_broken_image_is_named_with_its_line(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "list.csv").write_text("image,caption\na.png,a cat\n")
    source = opened({"kind": "images", "path": str(tmp_path / "list.csv")})
    with pytest.raises(ImageError, match=r"list\.csv line 2: .*a\.png is not an image"):
        source.sample(0).render(64)


def test_a_changed_target_is_another_pool(photos, tmp_path):
    before = opened(photos).fingerprint()
    assert opened(photos, seed=9).fingerprint() == before  # another order of the same rows
    write_image(tmp_path / "photos/0.png", "green", (30, 30))
    assert opened(photos).fingerprint() != before


# ---------------------------------------------------------------- prompts with images


def prompts(tmp_path, *lines):
    write_image(tmp_path / "a.png", (1, 0, 0))
    write_image(tmp_path / "sub/b.png", (2, 0, 0))
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"kind": "prompts", "path": str(path)}


def test_prompts_are_our_grammar_with_paths_relative_to_the_file(tmp_path):
    line = {"prompt": "a <image:a.png> on <image:sub/b.png|fit=crop> \\< 3", "target": "sub/b.png"}
    source = opened(prompts(tmp_path, line))
    sample = source.sample(0)
    assert sample.fragments == ("a ", None, " on ", None, " < 3")
    assert [image.size for image in sample.images] == [
        (20, 12),
        (12, 12),
    ]  # unchanged for the model, or by the `fit` of the tag
    assert red(sample.render(64).image) == 2
    assert source.gives == {"fragments", "target"}
    assert sample.caption == ""


@pytest.mark.parametrize(("fit", "size"), [("pad", (20, 20)), ("stretch", (12, 12)), ("crop", (12, 12))])
def test_a_tag_says_how_its_image_becomes_square(fit, size, tmp_path):
    source = opened(prompts(tmp_path, {"prompt": f"a <image:a.png|fit={fit}>"}))
    assert source.read(0).images[0].size == size


def test_prompts_of_text_alone_have_a_caption_and_targets_may_lack(tmp_path):
    source = opened(prompts(tmp_path, {"prompt": "a cat"}, {"prompt": "a dog", "target": "a.png"}))
    assert source.gives == {"fragments", "caption"}
    assert source.read(0).caption == "a cat"
    with pytest.raises(ConfigError, match=r"prompts\.jsonl line 1 has no image to be generated"):
        source.read(0).render(64)


@pytest.mark.parametrize(
    ("line", "message", "column"),
    [
        ({"prompt": "a <image:a.png"}, "line 2: this image tag is not closed", 3),
        ({"prompt": "a <image:-1>"}, r"line 2: training data cannot use <image:-1>: write the file's path", 3),
        ({"prompt": "a <image:a.png|weight=0.5>"}, "line 2: training data cannot use weight=0.5", 3),
        ({"prompt": "a <image:c.png>"}, r"line 2: there is no image .*c\.png", None),
        ({"prompt": "a cat", "target": "c.png"}, r"line 2: there is no image .*c\.png", None),
        ({"promt": "a cat"}, "line 2 has no prompt; it has promt", None),
        ({"prompt": "a cat", "target": None}, "line 2: target is None", None),
    ],
)
def test_faults_of_prompts_name_file_line_and_column(line, message, column, tmp_path):
    with pytest.raises((PromptError, MissingError), match=r"prompts\.jsonl " + message) as caught:
        opened(prompts(tmp_path, {"prompt": "fine"}, line))
    assert caught.value.column == column


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{batch_size: 4}", "data: give either kinds"),
        ("{batch_size: 4, kinds: {text: 1}, sources: [{kind: captions, path: a}]}", "data: give either kinds"),
        ("{batch_size: 4, sources: [{kind: captions, pth: a}]}", r"data\.sources\.0\.pth; did you mean path"),
        ("{batch_size: 4, sources: [{kind: captions}]}", r"data\.sources\.0: a source of kind captions has a path"),
        ("{batch_size: 4, sources: [{kind: world, path: a}]}", r"data\.sources\.0: a source of kind world has kinds"),
        ("{batch_size: 4, sources: [{kind: captions, path: a, weight: 0}]}", r"data\.sources\.0\.weight"),
        ("{batch_size: 4, sources: [{kind: films, path: a}]}", r"data\.sources\.0\.kind"),
    ],
)
def test_wrong_sources_of_a_recipe_are_one_clear_error(data, message, tmp_path):
    (tmp_path / "r.yaml").write_text(f"stage: align\noutput_dir: x\nsteps: 1\ndata: {data}\n")
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(tmp_path / "r.yaml"))


def test_paths_in_a_recipe_are_relative_to_it_and_those_typed_to_the_working_folder(tmp_path):
    text = "stage: align\noutput_dir: x\nsteps: 1\ndata: {batch_size: 4, sources: [{kind: captions, path: a.txt}]}\n"
    (tmp_path / "r.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "r.yaml")).data.sources[0].path == str(tmp_path / "a.txt")
    typed = load_recipe(str(tmp_path / "r.yaml"), ["data.sources=[{kind: captions, path: b.txt}]"])
    assert typed.data.sources[0].path == str(Path.cwd() / "b.txt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text(dump_recipe(typed))
    assert load_recipe(str(tmp_path / "run/recipe.yaml")) == typed


def test_the_shipped_example_data_are_what_their_script_makes(tmp_path):
    shipped = recipes_folder() / "example-data"
    examples.write_examples(tmp_path)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    there = {path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file() and path.suffix != ".yaml"}
    assert made == there
    for name in made:
        if name.suffix != ".jpg":
            assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()
            continue
        with Image.open(tmp_path / name) as one, Image.open(shipped / name) as other:
            assert np.abs(np.asarray(one, int) - np.asarray(other, int)).mean() < 2  # another libjpeg rounds otherwise


def test_the_example_data_are_fifty_samples_that_can_be_read():
    recipe = load_recipe("example-data/instruct")
    source = open_source(recipe.data, recipe.image_size, "generate")
    assert source.num_rows == 50 and source.gives == {"fragments", "target"}
    for row in range(50):
        sample = source.read(row)
        assert sample.fragments.count(None) == len(sample.images)
        assert sample.render(recipe.image_size).image.size == (recipe.image_size,) * 2 == (128, 128)
    taken = Counter("photos" in source.sample(number).origin for number in range(3006))
    assert taken == {False: 2004, True: 1002}
