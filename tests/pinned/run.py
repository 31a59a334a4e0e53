"""Hold the numbers of every stage, image, conditioning and score against those kept in `numbers.json`.

A change of layout or words must leave them as they are; a change of numbers is recorded on purpose:

    python tests/pinned/run.py                  compare with numbers.json (another processor rounds differently)
    python tests/pinned/run.py --exact FILE     compare bit for bit with a file recorded on the same machine
    python tests/pinned/run.py --record FILE    write the numbers of this tree

Everything goes through the command, in one process (imports take longer than the work) and on one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NUMBERS = HERE / "numbers.json"
STAGES = (
    "vae",
    "clip",
    "unet",
    "pretrain",
    "align",
    "align_images",
    "instruct",
    "judge",
    "eval_clip",
    "eval_dino",
    "controlnet",
    "lora",
)
PAPER = ("pretrain", "align", "instruct")
CLOCKS = ("samples_per_second", "cpu_seconds")
CAT, DOG = "recipes/nano/cat.png", "recipes/nano/dog.png"
STEPS = ["--steps", "6"]
IMAGES: dict[str, list[str]] = {
    "text": ["generate", "a red robot in the snow", "-s", "1"],
    "one_image": ["generate", f"a cat <image:{CAT}> in Minecraft", "-s", "2"],
    "two_images": ["generate", f"<image:{CAT}> and <image:{DOG}|fit=crop> on the beach", "-s", "3"],
    "slots": ["generate", "<image:-1> in the forest", "--image", DOG, "-s", "4", "--negative-prompt", "a car"],
    "lora": ["generate", f"<image:{CAT}> in the city", "--lora", "nano/comic:0.8", "-s", "5"],
    "controlnet": ["generate", f"<image:{CAT}> in the desert", "--controlnet", f"canny={DOG}:0.9", "-s", "6"],
    "several": ["generate", f"<image:{DOG}> in the garden", "-s", "7", "-n", "2"],
    "scheduler": ["generate", f"<image:{DOG}> in the night", "--scheduler", "dpm++", "-g", "2", "-s", "8"],
    "edit": ["edit", CAT, "add a hat", "-s", "9"],
}
CLOSE = 2e-3  # relative: what another processor's order of summation may change


def kg(*args: str, cwd: Path = ROOT) -> str:
    """Run the command in this process and return its standard output."""
    from kgcli.cli.app import run

    with contextlib.chdir(cwd), contextlib.redirect_stdout(io.StringIO()) as out:
        code = run(list(args))
    if code:
        raise SystemExit(f"kg {' '.join(args)}: exit code {code}")
    return out.getvalue()


def losses(work: Path) -> dict[str, Any]:
    """Train every smoke recipe in turn; return the rows of their metrics."""
    found = {}
    for stage in STAGES:
        command = [stage] if stage in PAPER else ["base", stage]
        kg(*command, str(ROOT / f"recipes/smoke/{stage}.yaml"), cwd=work)
        rows = [json.loads(line) for line in (work / f"runs/smoke/{stage}/metrics.jsonl").read_text().splitlines()]
        found[stage] = [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]
    return found


def images(work: Path) -> dict[str, Any]:
    """Generate one image or more by each way in; return hashes of pixels and mean colours of a coarse grid."""
    found = {}
    for name, args in IMAGES.items():
        kg(*args, *STEPS, "-o", str(work / name) + "/{index}.png")
        found[name] = [_pixels(path) for path in sorted((work / name).glob("*.png"))]
    batch = work / "batch.jsonl"
    batch.write_text("".join(json.dumps({"prompt": p, "seed": i}) + "\n" for i, p in enumerate(("a fox", "an owl"))))
    kg("generate", "--batch", str(batch), *STEPS, "-o", str(work / "batch") + "/{index}.png")
    found["batch"] = [_pixels(path) for path in sorted((work / "batch").glob("*.png"))]
    kg("generate", "--from", str(HERE / "made_before.png"), "--image", CAT, "-o", str(work / "again.png"))
    found["replay"] = [_pixels(work / "again.png")]
    return found


def conditioning(work: Path) -> dict[str, Any]:
    """Encode a prompt; return hashes and first numbers of the tensors."""
    kg(
        "encode",
        f"a <image:{CAT}> and <image:{DOG}>",
        "--negative-prompt",
        "a car",
        "-o",
        str(work / "cond.safetensors"),
    )
    return {
        name: {"sha256": _sha256(tensor.tobytes()), "values": [float(f"{v:.6g}") for v in tensor.ravel()[:8]]}
        for name, tensor in sorted(load_file(work / "cond.safetensors").items())
    }


def scores(work: Path) -> dict[str, Any]:
    """Run two small evaluations of the nano world; return what they measured."""
    run = work / "bench"
    kg("eval", "dreambench", "--suite", "nano", "--subjects", "castle", "-n", "1", "--steps", "4", "-o", str(run))
    return {
        "dreambench": _numbers(json.loads((run / "scores.json").read_text())),
        "nano": _numbers(json.loads(kg("eval", "nano", "--num", "4", "--json"))),
    }


def measure(only: list[str]) -> dict[str, Any]:
    """Return the numbers of this tree, all or some groups of them."""
    groups = {"losses": losses, "images": images, "conditioning": conditioning, "scores": scores}
    with tempfile.TemporaryDirectory() as work:
        return {name: group(Path(work)) for name, group in groups.items() if not only or name in only}


def differences(found: Any, expected: Any, exact: bool, where: str = "") -> list[str]:
    """Return a line for every number that is not what it was; hashes count in exact comparison alone."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = [f"{where}/{name}: only on one side" for name in sorted(expected.keys() ^ found.keys())]
        for name in sorted(expected.keys() & found.keys()):
            if name != "seconds" and (exact or name != "sha256"):
                lines += differences(found[name], expected[name], exact, f"{where}/{name}")
        return lines
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for place, (a, b) in pairs for line in differences(a, b, exact, f"{where}/{place}")]
    if found == expected:
        return []
    if not exact and isinstance(found, int | float) and isinstance(expected, int | float):
        limit = 3 if "mean_colours" in where else CLOSE * max(1.0, abs(expected))
        if abs(found - expected) <= limit:
            return []
    return [f"{where}: {found} was {expected}"]


def _pixels(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    coarse = np.asarray(rgb.resize((4, 4), Image.Resampling.BOX))
    return {"sha256": _sha256(rgb.tobytes()), "mean_colours": coarse.reshape(-1).tolist()}


def _numbers(value: Any) -> Any:
    """Return the numbers of a document by their keys; texts, hashes and versions are left out."""
    if isinstance(value, dict):
        kept = {name: _numbers(inner) for name, inner in value.items()}
        return {name: inner for name, inner in kept.items() if inner not in (None, {}, [])}
    if isinstance(value, list):
        return [inner for inner in map(_numbers, value) if inner not in (None, {}, [])]
    return value if isinstance(value, int | float) else None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--exact", type=Path)
    parser.add_argument("groups", nargs="*", help="losses images conditioning scores; default: all")
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")  # before torch is imported
    sys.path.insert(0, str(ROOT))
    found = measure(args.groups)
    if args.record:
        args.record.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        return
    expected = json.loads((args.exact or NUMBERS).read_text("utf-8"))
    expected = {name: value for name, value in expected.items() if name in found}
    lines = differences(found, expected, exact=bool(args.exact))
    print("\n".join(lines[:40]) or f"{', '.join(found)}: unchanged")
    raise SystemExit(bool(lines))


if __name__ == "__main__":
    main()
