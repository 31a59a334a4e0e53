"""Conditions on the columns of foreign data sets."""

import json

import foreign
import pytest
from foreign_shards import write_tar

from kgcli.data.importers import img2dataset
from kgcli.data.importers.base import ImportOptions, Skipped
from kgcli.data.importers.run import ImportPlan, run_import
from kgcli.data.importers.table import find_importer
from kgcli.data.shards.layout import read_dataset
from kgcli.data.sources import open_source
from kgcli.data.where import Condition, check_columns, parse_condition, unmet
from kgcli.errors import MissingError, UsageError
from kgcli.recipe import DataConfig

CELLS = [
    {"similarity": 0.35, "punsafe": 0.01, "license": "cc0"},
    {"similarity": 0.20, "punsafe": 0.01, "license": "by"},
    {"similarity": 0.31, "punsafe": 0.9, "license": "by"},
    {"similarity": None, "punsafe": 0.0, "license": None},
    {"similarity": float("nan"), "punsafe": 0.0, "license": "cc0"},
    {"similarity": 0.28, "punsafe": 0.1, "license": "cc0"},
]


@pytest.fixture
def laion(tmp_path):
    """Shards of img2dataset with the columns of CELLS."""
    groups = {}
    for number, cells in enumerate(CELLS):
        told = {"caption": f"{number} things", "status": "success", **cells}
        groups[f"{number:09d}"] = {
            "jpg": foreign.image_bytes(number),
            "txt": told["caption"].encode(),
            "json": json.dumps(told).encode(),
        }
    write_tar(tmp_path / "laion" / "00000.tar", groups)
    return tmp_path / "laion"


def conditions(*texts):
    return tuple(map(parse_condition, texts))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("similarity >= 0.28", Condition("similarity", ">=", 0.28)),
        (" punsafe<.5 ", Condition("punsafe", "<", 0.5)),
        ("width == 512", Condition("width", "==", 512.0)),
        ("AESTHETIC_SCORE > -1e-3", Condition("AESTHETIC_SCORE", ">", -1e-3)),
        ("license != 'by nc'", Condition("license", "!=", "by nc")),
        ('LANGUAGE == "en"', Condition("LANGUAGE", "==", "en")),
        ("clip score == high", Condition("clip score", "==", "high")),
        ('year == "2020"', Condition("year", "==", "2020")),
        ("id < 1234567", Condition("id", "<", 1234567)),
        ("id == 9007199254740993", Condition("id", "==", 9007199254740993)),
        ("score < 0.12345678901", Condition("score", "<", 0.12345678901)),
        ('rule == "a <= b"', Condition("rule", "==", "a <= b")),
        ("rule != 'he said \"a > b!\"'", Condition("rule", "!=", 'he said "a > b!"')),
        ('title == it\'s "x"', Condition("title", "==", 'it\'s "x"')),
        ('license != ""', Condition("license", "!=", "")),
    ],
)
def test_a_condition_is_a_column_a_comparison_and_a_value(text, expected):
    assert parse_condition(text) == expected == parse_condition(str(expected))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "similarity",
        "similarity >=",
        ">= 3",
        "a = 3",
        "a >= b",
        "a < 'x'",
        "a >= 1 and b < 2",
        "1 < a < 2",
        "a === 3",
        'a == ""',
        "a == ''",
        'a == "x" or b == "y"',
    ]
    + ["a >= nan", "a >= inf", "__import__('os').system('x')", "a >= 0x10"],
)
def test_what_is_no_condition_is_refused_in_one_line(text):
    with pytest.raises(UsageError, match=r"^--where is ") as caught:
        parse_condition(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "cell", "reason"),
    [
        ("a >= 0.28", 0.28, ""),
        ("a >= 0.28", "0.3", ""),  # a cell of a table
        ("a >= 0.28", 0.27, "a >= 0.28 does not hold"),
        ("a >= 0.28", None, "a is not known"),
        ("a >= 0.28", float("nan"), "a is not known"),
        ("a >= 0.28", "many", "a is not known"),
        ("a >= 0.28", [1], "a is not known"),
        ("a == x", "x", ""),
        ("a != x", "", "a is not known"),
        ("a == true", True, ""),
        ("a == 1", True, ""),
        ("a == True", True, ""),
        ("a == FALSE", False, ""),
        ("a == true", "True", ""),
        ("a != True", True, 'a != "True" does not hold'),
        ("a == 9007199254740993", 9007199254740993, ""),
        ("a == 9007199254740993", 9007199254740992, "a == 9007199254740993 does not hold"),
        ("a == 9007199254740993", "9007199254740992", "a == 9007199254740993 does not hold"),
        pytest.param("a < 1e3", 10**400, "a < 1000.0 does not hold", id="an integer over all floats"),
        ("a != x", "x", 'a != "x" does not hold'),
    ],
)
def test_an_unknown_cell_meets_no_condition(text, cell, reason):
    assert unmet(conditions(text), {"a": cell}) == reason
    assert unmet(conditions(text), {}) == "a is not known"


def test_an_unknown_column_is_named_with_the_nearest():
    with pytest.raises(UsageError, match=r"laion has no column similarty; did you mean similarity\?"):
        check_columns(conditions("similarty > 1"), ["similarity", "url"], "laion")
    with pytest.raises(UsageError, match="has no column zz; it has similarity, url"):
        check_columns(conditions("zz > 1"), ["url", "similarity"], "laion")


def test_rows_that_are_left_out_are_counted_by_condition(laion, tmp_path):
    where = conditions("similarity >= 0.28", "punsafe < 0.5")
    plan = ImportPlan(
        importer=find_importer("img2dataset"),
        source=str(laion),
        folder=tmp_path / "out",
        name="laion",
        options=ImportOptions(where=where),
        rows_per_shard=4,
    )
    done = run_import(plan)
    assert (done.rows, done.faults) == (2, 0)
    assert done.skipped == {
        "similarity >= 0.28 does not hold": 1,
        "punsafe < 0.5 does not hold": 1,
        "similarity is not known": 2,
    }
    assert "1 left out: similarity >= 0.28 does not hold" in str(done)
    made_by = read_dataset(tmp_path / "out").made_by
    assert made_by["where"] == ["similarity >= 0.28", "punsafe < 0.5"] and made_by["left_out"] == done.skipped
    assert run_import(plan).kept == 2


def test_an_import_with_another_number_does_not_resume(laion, tmp_path):
    first, second = (
        ImportPlan(
            importer=find_importer("img2dataset"),
            source=str(laion),
            folder=tmp_path / "out",
            name="laion",
            options=ImportOptions(where=conditions(text)),
        )
        for text in ("similarity < 0.3012341", "similarity < 0.3012342")
    )
    run_import(first)
    with pytest.raises(UsageError, match="of another import, source or version"):
        run_import(second)


@pytest.mark.parametrize("as_files", [False, True])
def test_the_command_filters_and_names_an_unknown_column(kg, laion, as_files):
    if as_files:
        import tarfile

        with tarfile.open(laion / "00000.tar") as tar:
            tar.extractall(laion / "00000", filter="data")
        (laion / "00000.tar").unlink()
    ran = kg(
        "data", "import", "img2dataset", laion, "--to", "out", "--where", "license == cc0", "--where", "punsafe < 1"
    )
    assert ran.code == 0 and ran.lines[0] == "3 rows in 1 shards"
    assert '2 left out: license == "cc0" does not hold' in ran.out and "1 left out: license is not known" in ran.out
    ran = kg("data", "import", "img2dataset", laion, "--to", "other", "--where", "unsafe < 0.5")
    assert ran.code == 2 and "has no column unsafe; did you mean punsafe?" in ran.err
    ran = kg("data", "import", "folder", laion, "--to", "other", "--where", "unsafe < 0.5")
    assert ran.code == 2 and "folder has no use for --where" in ran.err


def test_tables_texts_and_data_sets_have_columns_too(tmp_path):
    (tmp_path / "a.png").write_bytes(foreign.image_bytes(1, suffix="png"))
    lines = [{"image": "a.png", "caption": f"{n} things", "text": f"{n} things", "score": n} for n in range(5)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (tmp_path / "a.csv").write_text("image,caption,score\n" + "".join(f"a.png,{n} things,{n}\n" for n in range(5)))
    options = ImportOptions(where=conditions("score >= 3"))
    for layout, name in (("table", "a.jsonl"), ("table", "a.csv"), ("text", "a.jsonl")):
        assert taken(layout, tmp_path / name, options) == ["3 things", "4 things"]
    datasets = pytest.importorskip("datasets")
    (tmp_path / "hf").mkdir()
    datasets.Dataset.from_list(lines).remove_columns("image").to_parquet(tmp_path / "hf" / "train.parquet")
    assert taken("hugging-face", tmp_path / "hf", options) == ["3 things", "4 things"]
    for layout, name in (("table", "a.csv"), ("text", "a.jsonl"), ("hugging-face", "hf")):
        with pytest.raises(UsageError, match="has no column scor; did you mean score"):
            taken(layout, tmp_path / name, ImportOptions(where=conditions("scor > 1")))


def test_a_column_that_is_filled_late_or_never_is_there(tmp_path):
    lines = "".join(f"a.png,{n} things,{n if n > 1500 else ''}\n" for n in range(1503))
    (tmp_path / "a.csv").write_text("image,text,score,none\n" + lines)
    (tmp_path / "a.png").write_bytes(foreign.image_bytes(1, suffix="png"))
    late = [{"text": f"{n} things"} | ({"score": n} if n > 1500 else {}) for n in range(1503)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in late))
    options = ImportOptions(where=conditions("score >= 3"))
    for layout, name in (("table", "a.csv"), ("text", "a.csv"), ("text", "a.jsonl")):
        assert taken(layout, tmp_path / name, options) == ["1501 things", "1502 things"]
    assert taken("text", tmp_path / "a.csv", ImportOptions(where=conditions("none == x"))) == []


def test_the_columns_are_those_of_all_files_together(laion, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("a text alone\n")
    (texts / "b.jsonl").write_text('{"text": "a cat", "score": 5}\n')
    options = ImportOptions(where=conditions("score >= 3"))
    assert taken("text", texts, options) == ["a cat"]
    told = {"caption": "a cat", "score": 5}
    write_tar(laion / "00001.tar", {"0": {"jpg": foreign.image_bytes(1), "json": json.dumps(told).encode()}})
    assert taken("img2dataset", laion, options) == ["a cat"]
    for layout, source in (("text", texts), ("img2dataset", laion)):
        with pytest.raises(UsageError, match="has no column scor; did you mean score"):
            taken(layout, source, ImportOptions(where=conditions("scor >= 3")))


@pytest.mark.parametrize(
    ("layout", "name", "data"),
    [
        ("text", "a.json", b'["one cat"'),
        ("text", "a.csv", "text,score\n".encode("utf-16")),
        ("text", "a.jsonl", b'{"text'),
        ("table", "a.jsonl", b'{"image'),
        ("img2dataset", "a.tar", b"no tar at all"),
    ],
)
def test_a_damaged_source_is_a_fault_and_has_any_column(tmp_path, layout, name, data):
    (tmp_path / name).write_bytes(data)
    (item,) = find_importer(layout).items(str(tmp_path / name), ImportOptions(where=conditions("score >= 3")))
    with pytest.raises(MissingError, match=name):
        list(item.read())


def test_a_damaged_file_does_not_hide_the_columns_of_the_others(tmp_path):
    (tmp_path / "a.json").write_text('["one cat"')
    (tmp_path / "b.csv").write_text("")
    (tmp_path / "c.jsonl").write_text('{"text": "a cat", "score": 5}\n')
    options = ImportOptions(where=conditions("score >= 3"))
    assert len(list(find_importer("text").items(str(tmp_path), options))) == 2
    with pytest.raises(UsageError, match="did you mean score"):
        list(find_importer("text").items(str(tmp_path), ImportOptions(where=conditions("scor >= 3"))))


def test_few_texts_and_no_images_are_read_to_see_the_columns(laion, monkeypatch):
    names, whole = [], img2dataset.read_member
    monkeypatch.setattr(img2dataset, "read_member", lambda files, name: names.append(name) or whole(files, name))
    monkeypatch.setattr(img2dataset, "FIRST_ROWS", 2)
    with pytest.raises(UsageError, match="has no column unsafe"):
        taken("img2dataset", laion, ImportOptions(where=conditions("unsafe < 0.5")))
    assert sorted(names) == ["json", "json", "txt", "txt"]


def taken(layout, source, options):
    found = []
    for item in find_importer(layout).items(str(source), options):
        try:
            found += [record.words for record, _ in item.read()]
        except Skipped:
            continue
    return found


def source_of(path, *where):
    source = {"kind": "shards", "path": str(path), "filters": {"where": list(where)}}
    return open_source(DataConfig.model_validate({"sources": [source], "batch_size": 4}), 64, "generate")


def test_shards_of_other_programs_are_filtered_as_they_are_imported(laion, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for where in (
        ["similarity >= 0.28"],
        ["similarity >= 0.28", "punsafe < 0.5"],
        ["license == cc0"],
        ["license != by"],
    ):
        source = source_of(laion, *where)
        imported = taken("img2dataset", laion, ImportOptions(where=conditions(*where)))
        assert sorted(source.read(row).caption for row in range(source.num_rows)) == imported
        assert source.index.shards[0].dropped == len(CELLS) - len(imported)
    with pytest.raises(
        UsageError, match=r"filters\.where: .*00000\.tar has no column similarty; did you mean similarity"
    ):
        source_of(laion, "similarty >= 0.28")
    with pytest.raises(UsageError, match=r"^data\.sources: filters\.where is 'similarity'"):
        source_of(laion, "similarity")


def test_an_index_of_ours_has_no_columns_of_others_and_faults_stay(laion, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plan = ImportPlan(importer=find_importer("img2dataset"), source=str(laion), folder=tmp_path / "out", name="laion")
    run_import(plan)
    with pytest.raises(UsageError, match="has no column similarity; it has none"):
        source_of(tmp_path / "out", "similarity >= 0.28")
    damaged = {"jpg": foreign.image_bytes(1), "txt": b"x", "json": b"{"}
    good = {"jpg": foreign.image_bytes(1), "txt": b"x", "json": b'{"similarity": 0.5}'}
    write_tar(tmp_path / "more" / "a.tar", {"a": damaged, "b": good})
    assert source_of(tmp_path / "more", "similarity >= 0.28").num_rows == 2
    assert source_of(tmp_path / "more", "similarity >= 0.6").num_rows == 1
