"""Laws of the package as installed: one version, and all that ships is found by name."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image

import kgcli
from kgcli.cli import COMMANDS
from kgcli.data.images import open_image
from kgcli.files import PACKAGE
from kgcli.weights.shipped import DEFAULT_MODEL, find_image, find_shipped, shipped_names
from kgcli.world.examples import EXAMPLES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHIPPED_MEGABYTES = 40
PACKAGES = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "cv2": "opencv-python-headless",
    "cleanfid": "clean-fid",
    "open_clip": "open_clip_torch",
    "torch_fidelity": "torch-fidelity",
}
# Imported where they are asked for.
EXTRAS = {
    *("bitsandbytes", "datasets", "fsspec", "gradio", "langdetect", "pyarrow", "ray", "starlette", "xgrammar"),
}
USED_BY_OTHERS = {"peft"}  # diffusers loads LoRA through it


def test_one_version():
    (latest, *_) = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert kgcli.__version__ == latest
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "kgcli/version.py"
    try:
        assert metadata.version("kgcli") == latest
    except metadata.PackageNotFoundError:
        assert PACKAGE.parent == ROOT, "an installed package knows its version"


def test_the_public_names_are_there():
    assert sorted(kgcli.__all__) == ["KosmosGPipeline", "Prompt", "__version__", "load"]
    assert all(getattr(kgcli, name) for name in kgcli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = kgcli.lode


def test_the_console_script_is_the_module():
    assert PROJECT["project"]["scripts"] == {"kg": "kgcli.cli:main"}
    done = subprocess.run([sys.executable, "-m", "kgcli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"kg {kgcli.__version__}\n"


def test_dependencies_are_what_is_imported():
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {"tensorboard" if "tensorboard" in name else name.split(".")[0] for name in names}
    imported -= {"kgcli", "__future__"} | EXTRAS | sys.stdlib_module_names
    declared = {re.match(r"[\w-]+", dependency)[0] for dependency in PROJECT["project"]["dependencies"]}
    assert {PACKAGES.get(name, name) for name in imported} | USED_BY_OTHERS == declared


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example_pictures_are_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in (f"nano/{name}", f"recipes/nano/{name}"):
        path = find_image(given)
        assert Path(path).is_file()
        assert open_image(path).size == (128, 128)


def test_a_picture_at_hand_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "nano").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "recipes" / "nano" / "cat.png")
    assert open_image(find_image("recipes/nano/cat.png")).size == (8, 8)


def test_recipes_are_found_by_name():
    names = shipped_names()
    assert {"nano/pretrain", "nano/align", "nano/instruct", "smoke/align", "nano/vae", "nano/cat.png"} <= set(names)
    assert all(find_shipped(name) for name in names)
    assert find_shipped("../pyproject.toml") is None


def test_the_sprites_carry_their_licence():
    folder = PACKAGE / "nano" / "sprites"
    text = (folder / "NOTICE.txt").read_text("utf-8")
    assert "MIT License" in text and "Microsoft Corporation" in text
    assert (folder / "bank.webp").is_file()


def test_the_default_model_ships_and_is_small():
    assert DEFAULT_MODEL.is_dir(), "kgcli/nano/model is what `kg generate` draws with"
    size = sum(path.stat().st_size for path in DEFAULT_MODEL.rglob("*") if path.is_file())
    assert size <= SHIPPED_MEGABYTES * 10**6


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_is_there(page):
    text = page.read_text("utf-8")
    for command in re.findall(r"\bkg ([a-z]+)\b", text):
        assert command in COMMANDS, command
    for name in re.findall(r"\b(?:nano|smoke)/[\w/]+\b(?!\.)", text):
        assert find_shipped(name) or (PACKAGE / name).exists() or (PACKAGE / name).parent.exists(), name
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(snippet, page.name, "exec")
