"""Does instruct learn as much from constructed samples as from the generator's? Both at nano size, on the same images.

The images of the nano world's compositional samples are written as shards without a caption, and `kg data build` with
the world's own truth as stages makes compositional samples of them. One start is instructed twice, with the same seeds,
target images and noise: on the generator's samples and on the built ones. All three are scored as `kg eval nano` does,
and by their error on held-out samples of the generator, which tells them apart with fewer images.
They differ in what they can: the generator shows each subject in another image, a construction crops it from the same.

The start reads text alone: the shipped MLLM with a new AlignerNet, aligned on captions. Finished steps are kept in the
folder, so an interrupted call goes on; one with other options needs another folder. By default it makes the figures of
docs/data.md. Prints a table, then one JSON line:

    python tests/bench/bench_construction.py FOLDER | tail -1
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kgcli import engine
from kgcli.config import SamplingConfig
from kgcli.construction.config import load_config
from kgcli.construction.run import BuildPlan, run_build
from kgcli.data.shards.records import Pair
from kgcli.data.shards.write import Row, ShardWriter, encode_image, write_dataset
from kgcli.data.sources.world import draw
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.kosmosg import KosmosG
from kgcli.evaluation.benchmarks.nano_skills import answer, load_judges, note, recognition_of
from kgcli.evaluation.benchmarks.skills import TASKS, case_of, skills_plan, write_inputs
from kgcli.evaluation.metrics.intervals import cluster_mean, estimate
from kgcli.files import write_whole
from kgcli.recipe import load_recipe
from kgcli.training.run import Run
from kgcli.weights.shipped import DEFAULT_MODEL
from kgcli.world.tables import SIZE

KINDS = {"compositional": 1.0}
NUM_INFERENCE_STEPS = 12  # half of nano's default, for a busy machine
HELD_OUT_SEED, NUM_HELD_OUT, HELD_OUT_BATCH = 1, 256, 8
SCORED = ("subject", "named", "pair")
MEASURES = ("picked", "noun", "scene", "pair", "nouns")
STAGES = ["filters=[]", "captioner={use: world}", "extractor={use: world}", "segmenter={use: world}"]
RATE = ["optim.lr=5e-4", "optim.warmup_steps=20", "optim.decay_fraction=0.5", "ema_decay=0.98"]
QUIET = ["log_every=20", "save_every=50", "sample_every=100000", "data.num_workers=0", "precision=fp32"]


def build_samples(folder: Path, num: int) -> Path:
    """Write the target images as shards and build compositional samples of them; return their folder."""
    images, built = folder / "images", folder / "built"
    if not (images / "dataset.json").is_file():
        with ShardWriter(images, "nano") as writer:
            for index in range(num):
                image = draw(KINDS, 0, index, SIZE).render(SIZE).image
                writer.add(Row(f"{index:06d}", Pair(image="png", caption=""), {"png": encode_image(image)}))
        write_dataset(images, writer.shards, writer.kinds, made_by={})
    settings = load_config(None, [*STAGES, f"size={SIZE}", "format=png"])
    done = run_build(BuildPlan(source=images, folder=built, config=settings))
    assert done.kept == done.rows == num, dict(done.lines())
    return built


def train(name: str, recipe: str, folder: Path, overrides: list[str], changes: Mapping[str, Any] | None = None) -> Path:
    """Run a recipe unless its result is there; return the result's folder."""
    final = folder / name / "final"
    settings = json.dumps([recipe, overrides, changes], indent=1)
    noted = folder / name / "bench.json"
    known = noted.read_text() if noted.is_file() else None
    if known != settings and (known is not None or final.is_dir()):
        raise SystemExit(f"{noted.parent} was trained with other options; give another FOLDER")
    if not final.is_dir():
        noted.parent.mkdir(parents=True, exist_ok=True)
        write_whole(noted, settings)
        found = load_recipe(recipe, [f"output_dir={folder / name}", *QUIET, *overrides])
        if changes:
            found = found.model_validate({**found.model_dump(), **changes})
        note(f"{name}: {found.steps} steps of {found.data.batch_size}")
        engine.train(found)
    return final


def score(model: Path, num: int, steps: int) -> dict[str, dict[str, float]]:
    """Return the scores of a model's images by measure and case; kept beside the model."""
    kept = model.parent / f"scores-{num}-{steps}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    plan = skills_plan(model.parent / "inputs", num, 0, {}, SCORED)
    write_inputs(plan)
    sampling = SamplingConfig(num_inference_steps=NUM_INFERENCE_STEPS)
    decoder = str(DEFAULT_MODEL / "decoder")  # the start has none
    method = KosmosG(MethodOptions(model=str(model), decoder=decoder, device="cpu", sampling=sampling))
    recognisers = load_judges()
    scores: dict[str, dict[str, float]] = {}
    for task in SCORED:
        items = [item for item in plan.items if item.category == task]
        cases = [case_of(item) for item in items]
        recognise = recognition_of(recognisers, cases)
        note(f"{model.parent.name}: {TASKS[task].title}, {len(items)} images")
        for item, case, seen in zip(items, cases, recognise(answer(method, plan, items)), strict=True):
            for measure, value in TASKS[task].score(case, seen).items():
                if measure in MEASURES:
                    scores.setdefault(f"{task}: {measure}", {})[item.path] = value
    write_whole(kept, json.dumps(scores))
    return scores


def held_out_errors(model: Path, folder: Path) -> list[float]:
    """Return the U-Net's error in batches of the generator's samples that no model was trained on, noise and all."""
    starts = f"init_from={{model: {model}, decoder: nano/decoder}}"
    seeded = [f"data.seed={HELD_OUT_SEED}", f"data.pool={NUM_HELD_OUT}", "data.kinds={compositional: 1.0}"]
    shared = [f"data.moments={folder / 'moments'}", f"output_dir={folder / 'unused'}", "compile=false"]
    sizes = [f"data.batch_size={HELD_OUT_BATCH}", f"steps={NUM_HELD_OUT // HELD_OUT_BATCH}"]
    run = Run(load_recipe("nano/instruct", [*QUIET, starts, *seeded, *shared, *sizes]))
    with torch.no_grad():
        return [float(run.forward(batch)["diffusion"]) for batch in run.batches(run.pool(), 0)]


def compare_errors(errors: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Return each model's mean error, and how it differs from the start's and between the two, with intervals."""
    found = {name: [round(statistics.mean(values), 5)] for name, values in errors.items()}
    for first, second in (("generated", "start"), ("built", "start"), ("built", "generated")):
        mean = cluster_mean([a - b for a, b in zip(errors[first], errors[second], strict=True)])
        assert mean.low is not None and mean.high is not None
        found[f"{first} - {second}"] = [round(value, 5) for value in (mean.value, mean.low, mean.high)]
    return found


def rows_of(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Return a row for each measure: every model with its interval, and the difference of the two, case by case."""
    rows = []
    for measure, of_start in scores["start"].items():
        row: dict[str, Any] = {"measure": measure, "num": len(of_start)}
        for name in scores:
            found = estimate(list(scores[name][measure].values()))
            row[name] = [round(100 * value, 1) for value in (found.value, found.low, found.high)]
        built, generated = scores["built"][measure], scores["generated"][measure]
        found = cluster_mean([built[case] - generated[case] for case in built], (-1.0, 1.0))
        ends = (found.value, found.bootstrap_low or 0.0, found.bootstrap_high or 0.0)
        row["difference"] = [round(100 * value, 1) for value in ends]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=3200)
    parser.add_argument("--align-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num", type=int, default=36, help="cases of a task")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.folder.absolute()
    built = build_samples(folder, args.images)
    own = ["init_from={model: nano, text: nano/decoder}", f"steps={args.align_steps}", "data.batch_size=64"]
    frozen = ["data.pool=8192", "data.keep=true", "data.hidden=true"]  # the MLLM's states are computed once
    start = train("start", "nano/align", folder, [*own, *frozen], {"parts": {"aligner": {"num_layers": 2}}})
    shared = [f"init_from={{model: {start}, decoder: nano/decoder}}", f"steps={args.steps}", "compile=false", *RATE]
    shared += [f"data.batch_size={args.batch_size}", "options={vision_blocks: 2}"]
    data = {"batch_size": args.batch_size, "num_workers": 0}
    arms = {
        "generated": data | {"kinds": KINDS, "pool": args.images},
        # In the order of the files, as the generator's pool: a step has the same target images in both.
        "built": data | {"sources": [{"kind": "shards", "path": str(built), "shuffle": False}]},
    }
    models = {"start": start}
    models |= {name: train(name, "nano/instruct", folder, shared, {"data": source}) for name, source in arms.items()}
    rows = rows_of({name: score(model, args.num, args.steps) for name, model in models.items()})
    for row in rows:
        cells = [f"{name} {row[name][0]:5.1f} [{row[name][1]:5.1f}, {row[name][2]:5.1f}]" for name in models]
        lowest, highest = row["difference"][1:]
        print(f"{row['measure']:16} {row['num']:3}  {'  '.join(cells)}  built - generated [{lowest}, {highest}]")
    errors = compare_errors({name: held_out_errors(model, folder) for name, model in models.items()})
    print("error on held-out samples of the generator: " + ", ".join(f"{name} {of}" for name, of in errors.items()))
    within = all(row["difference"][1] <= 0.0 <= row["difference"][2] for row in rows)
    facts = {"images": args.images, "steps": args.steps, "batch_size": args.batch_size, "torch": torch.__version__}
    print(json.dumps({"theme": "construction", "within": within, **facts, "rows": rows, "errors": errors}))


if __name__ == "__main__":
    main()
