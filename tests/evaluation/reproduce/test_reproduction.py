"""Laws of reproduced tables: what is missing is trained, what is there is not, and rows stand beside the paper's."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from kgcli.config import SamplingConfig
from kgcli.data.sources.world import draw
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import ConfigError, IncompatibleError, MissingError, UsageError
from kgcli.evaluation.benchmarks.nano_world import VERSION
from kgcli.evaluation.plan import DreamBenchOptions
from kgcli.evaluation.reproduce.lineage import compute_in_all, compute_of, pending, recipe_at, result_of
from kgcli.evaluation.reproduce.order import compare_order
from kgcli.evaluation.reproduce.paper import TABLE_1, TABLE_2, TABLES, Row
from kgcli.evaluation.reproduce.reproduction import Reproduction, RowResult, describe, jobs, reproduce, trainings
from kgcli.evaluation.reproduce.table import COMPUTE, JSON, MARKDOWN, Cell, cell_of, write_table
from kgcli.evaluation.run.folder import RunFolder
from kgcli.evaluation.scores import Figure, Measure, Scores
from kgcli.files import PACKAGE
from kgcli.model.nano_evaluators import EvalClip, EvalVit
from kgcli.recipe import dump_recipe, load_recipe
from kgcli.weights.shipped import DEFAULT_MODEL
from kgcli.world.tables import SIZE

SMALL = {"model": "smoke/pretrain/final", "decoder": "smoke/unet/final"}  # of an ablation at smoke scale


def finish(recipe, speed=64.0):
    """A run folder as training leaves it."""
    result = result_of(recipe)
    result.mkdir(parents=True)
    (result.parent / "recipe.yaml").write_text(dump_recipe(recipe))
    rows = [
        {"step": recipe.steps // 2, "samples_per_second": speed, "cpu_seconds": 30.0},
        {"step": recipe.steps, "samples_per_second": speed, "cpu_seconds": 30.0},
    ]
    (result.parent / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def scored(job, value, measure="fid_nano-clip"):
    figure = Figure(measure=measure, value=value, low=value - 1, high=value + 1)
    return Scores(
        suite=job.suite,
        protocol={"num_items": 8},
        method={"name": job.row.method},
        versions={},
        data="",
        measures=(Measure(name=measure, title="FID", higher_is_better=False),),
        figures=(figure,),
        pictures=(),
    )


@pytest.mark.parametrize("scale", ["nano", "smoke"])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_bare_machine_trains_all_that_a_table_stands_on_in_order(table, scale, tmp_path):
    options = Reproduction(table=table, out=tmp_path / "out", scale=scale, runs=tmp_path)
    waiting, made = trainings(options), set()
    assert len({recipe.image_size for recipe in waiting}) == 1
    for recipe in waiting:
        assert all(source in made for source in recipe.init_from.values()), recipe.output_dir
        made.add(str(result_of(recipe)))
    assert len(made) == len(waiting)
    stages = [recipe.stage for recipe in waiting]
    assert {"vae", "clip", "unet", "pretrain"} <= set(stages)
    own = {row.recipe for row in table.rows if row.is_model}
    assert all(str(result_of(recipe_at(name, scale, tmp_path))) in made for name in own)


def test_what_is_there_is_not_trained_again(tmp_path):
    options = Reproduction(table=TABLE_2, out=tmp_path / "out", runs=tmp_path, rows=("aligner-12",))
    first, *rest = trainings(options)
    finish(first)
    assert trainings(options) == rest
    for recipe in rest:
        finish(recipe)
    assert trainings(options) == []


def test_what_was_trained_on_an_earlier_world_is_not_taken(tmp_path):
    options = Reproduction(table=TABLE_2, out=tmp_path / "out", runs=tmp_path, rows=("aligner-12",))
    first, *_ = trainings(options)
    finish(first.model_copy(update={"image_size": 64}))
    with pytest.raises(ConfigError, match=f"{first.output_dir} holds a run at 64 px"):
        trainings(options)


def test_seeds_train_runs_of_their_own_on_one_base(tmp_path):
    one = Reproduction(table=TABLE_2, out=tmp_path / "out", runs=tmp_path)
    two = dataclasses.replace(one, num_seeds=2)
    more = trainings(two)[:]
    added = [recipe for recipe in more if recipe not in trainings(one)]
    assert [recipe.seed for recipe in added] == [1] * 5
    assert all(recipe.output_dir.endswith("-seed1") and recipe.data.seed == 1 for recipe in added)
    assert [job.out.relative_to(tmp_path / "out").as_posix() for job in jobs(two)][:2] == ["sd/seed0", "sd/seed1"]
    models = [job.options.model for job in jobs(two) if job.row.name == "aligner-12"]
    assert models == [str(tmp_path / f"ablations/aligner-12{end}/final") for end in ("", "-seed1")]


def test_an_ablation_at_smoke_scale_keeps_what_it_changes(tmp_path):
    recipe = recipe_at("ablations/e2e-without-aligner", "smoke", tmp_path)
    assert recipe.parts["aligner"]["kind"] == "linear"
    assert recipe.data.kinds == {"caption": 1.0} and recipe.steps <= 4
    assert recipe.init_from == {name: str(tmp_path / folder) for name, folder in SMALL.items()}
    assert recipe_at("ablations/drop-all", "smoke", tmp_path).data.drop_entity_text == 1.0
    with pytest.raises(ConfigError, match="--scale"):
        recipe_at("nano/align", "full", tmp_path)


def test_a_model_without_aligner_has_a_place_for_every_token_of_its_captions():
    """The longest of the 16,384 of its pool has 77: a prompt with more tokens than places would end the run."""
    recipe = load_recipe("ablations/e2e-without-aligner")
    tokenizer = Tokenizer.load(DEFAULT_MODEL / "tokenizer")
    captions = [draw(recipe.data.kinds, recipe.data.seed, number, SIZE).caption for number in range(40, 60)]
    lengths = [1 + len(tokenizer.encode(caption)) for caption in captions]
    assert 64 < max(lengths) <= recipe.parts["aligner"]["num_queries"] - 16


def test_a_source_that_no_recipe_makes_is_named(tmp_path):
    recipe = recipe_at("nano/align", "nano", tmp_path).model_copy(update={"init_from": {"model": "elsewhere/final"}})
    with pytest.raises(MissingError, match="elsewhere"):
        pending(recipe, "nano", tmp_path)


def test_compute_is_read_from_the_run_and_counts_each_ancestor_once(tmp_path):
    recipes = trainings(Reproduction(table=TABLE_2, out=tmp_path / "o", runs=tmp_path, rows=("e2e-with-aligner",)))
    for recipe in recipes:
        finish(recipe)
    last = next(recipe for recipe in recipes if "e2e" in recipe.output_dir)
    own = compute_of(result_of(last).parent)
    assert own.samples == last.steps * last.data.batch_size
    assert own.minutes == pytest.approx(own.samples / 64 / 60) and own.cpu_minutes == 1.0
    total = sum(recipe.steps * recipe.data.batch_size for recipe in recipes)  # CLIP is below both halves
    assert compute_in_all(result_of(last).parent).samples == total
    with pytest.raises(MissingError, match="not a run folder"):
        compute_of(tmp_path)


def test_the_order_of_rows_is_compared_pair_by_pair():
    paper = {"sd": 9.34, "linear": None, "long": 11.3, "decoder": None, "full": 9.55}
    same = compare_order({"sd": 1, "full": 2, "long": 3, "linear": 9, "decoder": 8}, paper, higher_is_better=False)
    assert same.tau == pytest.approx(1.0, abs=0.06) and same.swapped == ()
    assert same.rows == ("sd", "full", "long", "linear", "decoder") and same.num_pairs == 10
    other = compare_order({"sd": 2, "full": 1, "linear": 9}, paper, higher_is_better=False)
    assert other.swapped == (("sd", "full"),)
    assert compare_order({"sd": 9, "full": 1}, {"sd": 0.2, "full": 0.9}, higher_is_better=True).tau == -1.0
    assert compare_order({"sd": 9}, paper, higher_is_better=False) is None
    assert compare_order({"sd": 1, "full": 1}, paper, higher_is_better=False).tau is None


def test_a_table_shows_figures_compute_and_where_it_contradicts_the_paper(tmp_path):
    options = Reproduction(table=TABLE_2, out=tmp_path / "out", runs=tmp_path / "runs")
    values = dict(zip([row.name for row in TABLE_2.rows], [10.0, 50.0, 12.0, 60.0, 9.0, 11.0], strict=True))
    trained = []

    def train(recipe):
        trained.append(recipe.output_dir)
        finish(recipe)

    results = reproduce(options, train, lambda job: scored(job, values[job.row.name]))
    shown = write_table(options, results)
    assert len(trained) == len(set(trained)) == 11  # vae, sharpen, clip, two of the unet, pretrain, five ablations
    assert "| SD, its own text encoder | 10.000 [9.000, 11.000] | 9.34 | - |" in shown
    assert "| 50.000 [49.000, 51.000] | failed | 64,000 | 1.0 | 16.7 |" in shown
    assert "(12 layers -> 1 + 1) is better than SD, its own text encoder (their intervals overlap)." in shown
    document = json.loads((options.out / JSON).read_text())
    assert document["order"]["fid"]["swapped"] == [["sd", "aligner-12"], ["aligner-24", "aligner-12"]]
    assert document["rows"][1]["published"] == {"fid": "failed"}
    assert [column["name"] for column in document["columns"]] == ["fid"]
    assert json.loads((options.out / COMPUTE).read_text())["aligner-24"]["own"]["samples"] == 153_600
    before = (options.out / JSON).read_bytes()
    write_table(options, reproduce(options, pytest.fail, lambda job: scored(job, values[job.row.name])))
    assert (options.out / JSON).read_bytes() == before
    assert (options.out / MARKDOWN).read_text() == shown


def test_intervals_of_several_seeds_are_over_seeds(tmp_path):
    options = Reproduction(table=TABLE_2, out=tmp_path / "out", runs=tmp_path, rows=("sd", "aligner-12"), num_seeds=2)
    results = reproduce(options, finish, lambda job: scored(job, 10.0 + job.seed))
    shown = write_table(options, results)
    assert "10.500 [4.147, 16.853]" in shown and "over seeds" in shown  # t of one degree of freedom: 12.706


def test_what_a_table_does_not_have_is_refused(tmp_path):
    with pytest.raises(UsageError, match="aligner-48"):
        Reproduction(table=TABLE_2, out=tmp_path, rows=("aligner-48",))
    with pytest.raises(UsageError, match="--seeds"):
        Reproduction(table=TABLE_1, out=tmp_path, num_seeds=0)
    with pytest.raises(UsageError, match="--num is the number of captions and table1 has subjects"):
        Reproduction(table=TABLE_1, out=tmp_path, num=8)
    with pytest.raises(UsageError, match="table2 has captions, one image each; give --num"):
        Reproduction(table=TABLE_2, out=tmp_path, num_images=2)


@pytest.mark.parametrize(
    ("table", "asked", "words"),
    [
        (TABLE_1, {"subjects": ("nosuch",)}, "unknown subject nosuch"),
        (TABLE_1, {"num_images": 0}, "--num-images is 0"),
        (TABLE_2, {"num": 0}, "0 captions"),
        (TABLE_2, {"num": 999_999}, "999999 captions"),
    ],
)
def test_what_no_suite_has_is_found_before_anything_is_trained(tmp_path, table, asked, words):
    with pytest.raises(UsageError, match=words):
        Reproduction(table=table, out=tmp_path, **asked)


def test_the_device_is_looked_for_before_anything_is_trained(tmp_path, monkeypatch):
    from kgcli.evaluation.reproduce import bench as reproduction_bench

    monkeypatch.setattr(reproduction_bench, "reproduce", pytest.fail)
    with pytest.raises(UsageError, match="--device is toaster"):
        reproduction_bench.run(Reproduction(table=TABLE_1, out=tmp_path, device="toaster"))


@pytest.mark.parametrize("left", ["run", "data"])
def test_what_an_earlier_version_left_is_found_before_anything_is_trained(tmp_path, monkeypatch, left):
    from kgcli.evaluation.benchmarks import nano as suites
    from kgcli.evaluation.reproduce import bench as reproduction_bench

    monkeypatch.setattr(reproduction_bench, "reproduce", pytest.fail)
    options = Reproduction(table=TABLE_1, out=tmp_path, rows=("copy-input",), runs=tmp_path / "runs")
    if left == "run":
        plan = suites.dreambench_plan("0" * 64, tmp_path, DreamBenchOptions(num_images=1), {})
        plan.protocol["version"] = VERSION - 1
        (job,) = jobs(options)
        RunFolder.start(job.out, plan)
        fault = pytest.raises(IncompatibleError, match=f"seed0 was made by version {VERSION - 1} of the nano suites")
    else:
        folder = tmp_path / "data" / TABLE_1.suite
        folder.mkdir(parents=True)
        held = {"suite": TABLE_1.suite, "version": VERSION - 1, "files": {}}
        (folder / "data.json").write_text(json.dumps(held))
        fault = pytest.raises(UsageError, match=f"holds other data .version {VERSION - 1}, not {VERSION}")
    with fault:
        reproduction_bench.run(options)


def test_an_interval_of_resampled_images_is_shown_where_there_are_no_subjects(tmp_path):
    figure = Figure(measure="fid_nano-clip", value=5.0, bootstrap_low=4.0, bootstrap_high=7.0)
    job = jobs(Reproduction(table=TABLE_2, out=tmp_path))[0]
    scores = dataclasses.replace(scored(job, 5.0), figures=(figure,))
    result = RowResult(row=job.row, scores=(scores,), own=None, in_all=None, generation_minutes=0.0)
    assert cell_of(result, TABLE_2.columns[0]) == Cell(5.0, 4.0, 7.0)


def test_the_command_says_what_it_would_do_and_refuses_what_is_unknown(kg, tmp_path):
    ran = kg("reproduce", "table1", "--runs", tmp_path / "runs", "--dry-run")
    assert ran.code == 0 and "train " in ran.out and "dreambooth" in ran.out and not (tmp_path / "runs").exists()
    options = Reproduction(table=TABLE_1, out=tmp_path / "runs/reproduce/table1-nano", runs=tmp_path / "runs")
    assert ran.out.strip() == describe(options)
    ran = kg("reproduce", "table3")
    assert ran.code == 2 and "table1, table2, data" in ran.err


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Extractors of evaluation, with random weights."""
    folder = tmp_path_factory.mktemp("extractors")
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = CLIPTokenizer.from_pretrained(PACKAGE / "nano/model/decoder/tokenizer")
    EvalClip([8, 8, 16, 16], 16, {**text, "max_position_embeddings": 32}, tokenizer).save(folder / "eval_clip")
    vit = {"img_size": 64, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
    EvalVit(vit, 16).save(folder / "eval_dino")
    return folder


@pytest.fixture(scope="module")
def bench(weights, tmp_path_factory):
    from kgcli.evaluation.extractors.nano import nano_extractors
    from kgcli.evaluation.reproduce.bench import NanoBench

    return NanoBench(tmp_path_factory.mktemp("data"), nano_extractors(weights), num_real=48)


def small_job(out, row, suite, **given):
    """One that generates a handful of images with the shipped model."""
    table = {"nano-coco": TABLE_2, "nano-dreambench": TABLE_1}[suite]
    options = Reproduction(table=table, out=out, runs=out / "runs", rows=(row,), **given)
    (job,) = jobs(options)
    decoder = str(PACKAGE / "nano/model/decoder") if job.row.method != "copy-input" else None
    options = dataclasses.replace(
        job.options, model=None, decoder=decoder, sampling=SamplingConfig(num_inference_steps=2)
    )
    return dataclasses.replace(job, options=options)


def test_captions_are_generated_and_scored_with_intervals_once(bench, tmp_path):
    job = small_job(tmp_path, "sd", "nano-coco", num=24)
    scores = bench(job)
    fid = scores.find("fid_nano-clip")
    assert fid.low is None and fid.bootstrap_low <= fid.value <= fid.bootstrap_high  # there are no subjects
    assert 0.0 <= scores.find("judge_noun").value <= 1.0 and scores.find("clip_t").num_pictures == 24
    run = RunFolder.open(job.out)
    kept = {path: path.stat().st_mtime_ns for path in run.path.rglob("*.png")}
    assert len(kept) == 24
    assert bench(job) == scores
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*.png")} == kept
    with pytest.raises(UsageError, match="holds another run"):
        bench(dataclasses.replace(job, num=16))


def test_the_interval_of_a_distance_holds_what_other_images_would_give(monkeypatch):
    from kgcli.evaluation.metrics import frechet
    from kgcli.evaluation.metrics.frechet import Moments, Reference

    monkeypatch.setattr(frechet, "NUM_RESAMPLES", 100)
    rng = np.random.default_rng(0)
    reference = Reference(Moments.of(rng.normal(size=(2000, 4))))
    mixed = rng.normal(size=(4, 4))

    def drawn():
        return (0.3 + rng.normal(size=(100, 4)) @ mixed).astype(np.float32)

    expected = np.mean([reference.distance(Moments.of(drawn())) for _ in range(400)])
    intervals = [frechet.distance_interval(reference, drawn()) for _ in range(100)]
    assert 0.86 <= np.mean([low <= expected <= high for low, high in intervals]) <= 0.99


def test_subjects_are_scored_with_their_recognisers(bench, tmp_path):
    from kgcli.evaluation.benchmarks.nano import subjects

    job = small_job(tmp_path, "copy-input", "nano-dreambench", num_images=1, subjects=tuple(subjects())[:3])
    scores = bench(job)
    assert scores.find("dino_input").value == pytest.approx(1.0, abs=1e-6)  # a copy of the input
    for column in TABLE_1.columns:
        assert scores.find(column.measure).num_subjects == 3


@pytest.mark.slow
def test_table_2_from_a_bare_machine_at_smoke_scale(weights, kg, tmp_path):
    asked = ("reproduce", "table2", "--scale", "smoke", "--num", "24", "--weights", weights)
    ran = kg(*asked)
    assert ran.code == 0, ran.err
    assert all(row.title in ran.out for row in TABLE_2.rows)
    document = json.loads((tmp_path / "runs/reproduce/table2-smoke" / JSON).read_text())
    assert all("fid" in row["figures"] for row in document["rows"])
    assert kg(*asked).out.strip() == ran.out.strip()  # nothing is done again, so no minute is added


def test_a_row_without_a_model_of_its_own_has_no_compute():
    assert not Row(name="x", title="x", recipe="nano/align", method="sd").is_model
