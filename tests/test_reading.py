"""Text, JSON and YAML of strangers: refused in one line where it is larger, deeper or stranger than any real file."""

import json
import os
import time

import pytest

from kgcli.errors import ConfigError, MissingError
from kgcli.reading import parse_json, parse_yaml, read_bytes, read_json, read_text, read_yaml

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
MERGE_BOMB = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9)
)
BAD_JSON = {
    "deep": ("[" * 100_000, "deep"),
    "deep and closed": ("[" * 40 + "]" * 40, "deep"),
    "nan": ('{"a": NaN}', "NaN"),
    "infinity": ('{"a": 1e999}', "number inf"),
    "huge integer": ("1" + "0" * 30, "64 bits"),
    "endless integer": ("9" * 5000, "not valid JSON"),
    "surrogate": ('"\\ud800"', "surrogate"),
    "cut": ('{"a": 1', "not valid JSON"),
}
BAD_YAML = {
    "aliases": (BOMB, "more than"),
    "merged aliases": (MERGE_BOMB, "more than"),
    "cycle": ("&a [*a]", "deep"),
    "deep": ("[" * 20_000, "deep"),
    "deep and closed": ("[" * 40 + "]" * 40, "deep"),
    "date": ("2024-99-99", "not valid YAML"),
    "huge integer": ("9" * 5000, "not valid YAML"),
    "hexadecimal": ("0x" + "f" * 5000, "64 bits"),
    "nan": (".nan", "number nan"),
    "twice": ("{a: 1, b: 2, a: 3}", "a is given twice"),
    "python": ("!!python/object/apply:os.system [echo]", "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2", "not valid YAML"),
    "list as a key": ("? [1]\n: 2", "not valid YAML"),
    "control characters": ("a: \x00", "not valid YAML"),
}


@pytest.mark.parametrize("text, says", BAD_JSON.values(), ids=BAD_JSON)
def test_bad_json_is_one_line(text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        parse_json(text, name="plan.json", error=ConfigError)
    assert str(caught.value).startswith("plan.json ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text, says", BAD_YAML.values(), ids=BAD_YAML)
def test_bad_yaml_is_one_line_and_fast(text, says):
    start = time.process_time()
    with pytest.raises(ConfigError, match=says) as caught:
        parse_yaml(text, name="recipe.yaml", error=ConfigError)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 5


def test_good_yaml_is_read_as_by_pyyaml():
    text = "base: &b {x: 1, y: 1.0e-3}\nderived: {<<: *b, y: 2}\nlist: [*b, no, null, '2']\n"
    assert parse_yaml(text, name="x") == {
        "base": {"x": 1, "y": 0.001},
        "derived": {"x": 1, "y": 2},
        "list": [{"x": 1, "y": 0.001}, False, None, "2"],
    }
    assert parse_yaml("", name="x") is None


def test_files_are_read_up_to_their_limit(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": [1, 2.5, "x", None]}))
    assert read_json(path) == {"a": [1, 2.5, "x", None]}
    assert read_yaml(path) == {"a": [1, 2.5, "x", None]}
    size = path.stat().st_size
    assert len(read_bytes(path, max_bytes=size)) == size
    with pytest.raises(MissingError, match="too large"):
        read_bytes(path, max_bytes=size - 1)


def test_a_byte_order_mark_is_not_text_and_other_encodings_are_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("caf\u00e9".encode("utf-8-sig"))
    assert read_text(path, max_bytes=100) == "caf\u00e9"
    path.write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(MissingError, match="not UTF-8"):
        read_text(path, max_bytes=100)


def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MissingError, match="not a regular file"):
        read_json(tmp_path / "pipe")
    with pytest.raises(MissingError, match="cannot be read"):
        read_json(tmp_path)
    with pytest.raises(MissingError, match="there is no file"):
        read_json(tmp_path / "absent")
    with pytest.raises(MissingError, match="cannot be read"):
        read_json(tmp_path / "a\0b")
