"""Every command block of README.md and docs/ does what it says: it is run here, or says why it cannot be.

A block that cannot run on a machine without network, GPU and days is preceded by a comment (blank lines between are
fine):

    <!-- not run: needs the published weights -->

The other `sh` and `python` blocks of a page run in order in one new folder that holds the example images (cat.png,
dog.png ...), `recipes/`, and `photo.jpg`. `kg generate`, `edit` and `explain` take two denoising steps unless the block
sets them; `pip install` and `uv pip install` are left out, since `.ci/run` begins with the first. Blocks of the README
run always, those of docs/ with `-m slow`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from kgcli.world.examples import EXAMPLES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("sh", "python")
SHOWN = ("", "text", "yaml", "json", "jsonl", "toml")  # no commands
FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
REASON = re.compile(r"<!--\s*not run:\s*(?P<reason>(?:(?!-->).)*?)\s*-->\s*\Z", re.DOTALL)
LEAST_REASON = 10  # characters
SECONDS = 600
PREAMBLE = """
set -eu
kg() {
  case "$1" in generate|edit|explain)
    case " $* " in *" --steps "*) ;; *) set -- "$@" --steps 2 ;; esac ;;
  esac
  "$KG_PYTHON" -m kgcli "$@"
}
python() { "$KG_PYTHON" "$@"; }
pip() { [ "$1" = install ]; }
uv() { [ "$1 $2" = "pip install" ]; }
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    kind: str
    text: str
    reason: str | None  # why it is not run

    @property
    def name(self) -> str:
        """Page and line, as the test's id."""
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path, text: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(text):
        said = REASON.search(text[: match.start()])
        indent = match["indent"]
        body = re.sub(f"^{indent}", "", match["text"], flags=re.MULTILINE)
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match["kind"], body, said["reason"] if said else None))
    return found


def commands_of(page: Path) -> list[Block]:
    return [block for block in blocks_of(page, page.read_text("utf-8")) if block.kind in RUN and block.reason is None]


def run_block(block: Block, folder: Path) -> None:
    environment = {
        **os.environ,
        "KG_PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    command = [sys.executable, "-c", block.text] if block.kind == "python" else ["bash", "-c", PREAMBLE + block.text]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{block.name} ended with {done.returncode}:\n{block.text}\n{done.stderr[-3000:]}"


def make_folder(folder: Path) -> Path:
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for name in EXAMPLES:
        shutil.copy(ROOT / "recipes" / "nano" / name, folder / name)
    Image.open(ROOT / "recipes" / "nano" / "fox.png").convert("RGB").save(folder / "photo.jpg")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page):
    for block in blocks_of(page, page.read_text("utf-8")):
        assert block.kind in (*RUN, *SHOWN), f"{block.name}: use ```sh for commands, not ```{block.kind}"
        if block.reason is not None:
            assert len(block.reason) >= LEAST_REASON, f"{block.name}: say why it is not run"
        # A line that begins with `$` belongs to a session that is shown with its output.
        hidden = block.kind in SHOWN and re.search(r"^\s*(kg |pip install )", block.text, re.MULTILINE)
        assert not hidden, f"{block.name} holds commands: mark it ```sh"


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if page.name == "README.md" else [pytest.mark.slow]) for page in PAGES],
    ids=lambda page: page.name,
)
def test_the_blocks_of_a_page_run_in_order(page, tmp_path):
    folder = make_folder(tmp_path)
    for block in commands_of(page):
        run_block(block, folder)


TEXT = """
```sh
kg ls
```

<!-- not run: needs a GPU
     and hours -->

```sh
false
```
1. a list
   ```python
   assert True
   ```
```text
kg
```

<!-- not run: a reason of its own -->

```sh
true
```
"""


def test_blocks_are_found_with_their_reasons():
    found = blocks_of(Path("x.md"), TEXT)
    assert [(block.line, block.kind, block.reason) for block in found] == [
        (2, "sh", None),
        (9, "sh", "needs a GPU\n     and hours"),
        (13, "python", None),
        (16, "text", None),
        (22, "sh", "a reason of its own"),
    ]
    assert found[2].text == "assert True\n"


def test_a_block_that_fails_fails_its_test(tmp_path):
    for kind, text in (("sh", "false\ntrue"), ("sh", "kg generate"), ("python", "raise SystemExit(3)")):
        with pytest.raises(AssertionError, match=r"x\.md:7 ended with"):
            run_block(Block(Path("x.md"), 7, kind, text, None), tmp_path)
