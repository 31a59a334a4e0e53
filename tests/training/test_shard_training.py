"""Laws of training on shards: the nano world trains bit for bit as its generator does; bad rows are counted."""

import dataclasses
import json

import pytest
import torch
from PIL import ImageOps
from safetensors.torch import load_file
from smoke_runs import rows_of, smoke
from world_shards import write_world

from kgcli.data.sources import open_source
from kgcli.errors import ConfigError, MissingError, PromptError
from kgcli.recipe import DataConfig, Recipe
from kgcli.training import loop as training
from kgcli.training.stages import find_stage

pytest.importorskip("pyarrow")
NUM = 16  # 4 steps of 4 samples


pytestmark = pytest.mark.usefixtures("own_cache")


def on_shards(recipe, folder, out, **settings):
    """The recipe with shards in the place of the nano world."""
    source = {"kind": "shards", "path": str(folder), "shuffle": False}
    data = {"sources": [source], "batch_size": recipe.data.batch_size, "num_workers": 0, **settings}
    values = recipe.model_dump(mode="json") | {"data": data, "output_dir": str(out)}
    return Recipe.model_validate(values)


@pytest.mark.parametrize("stage", ["pretrain", "align", "instruct"])
def test_the_world_as_shards_trains_bit_for_bit_as_its_generator(chain, tmp_path, stage):
    own = ["data.pool=16"] if stage == "instruct" else []
    recipe = smoke(chain, stage, *own, out=tmp_path / "generator")
    source = open_source(recipe.data, recipe.image_size, find_stage(stage).use)
    write_world(tmp_path / "world", source, NUM, recipe.image_size, max_rows=NUM if stage == "instruct" else 5)
    training.train(recipe)
    training.train(on_shards(recipe, tmp_path / "world", tmp_path / "shards"))
    assert rows_of(tmp_path / "generator") == rows_of(tmp_path / "shards")
    one, other = (load_file(tmp_path / name / "final/model.safetensors") for name in ("generator", "shards"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def spoiled(recipe, folder, bad):
    """Write the recipe's world as shards of 5 rows, of which some hold no image."""
    source = open_source(recipe.data, recipe.image_size, "generate")
    write_world(folder, source, NUM, recipe.image_size, max_rows=5)
    for row in bad:
        path = folder / f"world-{row // 5:05d}.tar"
        content = path.read_bytes()
        at = content.index(b"\x89PNG", content.index(f"{row:06d}.json".encode()))
        path.write_bytes(content[:at] + b"XXXX" + content[at + 4 :])
    return folder


def test_bad_rows_are_counted_once_and_named_by_shard(chain, tmp_path, caplog):
    recipe = smoke(chain, "instruct", "data.pool=16", out=tmp_path / "run")
    folder = spoiled(recipe, tmp_path / "world", [3, 6, 7])
    own = on_shards(recipe, folder, tmp_path / "run", faults="skip", num_workers=1)
    training.train(own.model_copy(update={"steps": 2}))
    training.train(own)
    faults = [json.loads(line) for line in (tmp_path / "run/faults.jsonl").read_text().splitlines()]
    assert sorted(fault["row"] for fault in faults) == ["000003", "000006", "000007"]
    assert {fault["file"] for fault in faults} == {str(folder / f"world-0000{n}.tar") for n in (0, 1)}
    with pytest.raises(MissingError, match=r"3 rows of the data cannot be read, .* allows 2.*00001\.tar: 2"):
        training.train(on_shards(recipe, folder, tmp_path / "other", faults="skip", max_faults=2))
    with pytest.raises(MissingError, match=r"world-00000\.tar 000003: its .*is not an image"):
        training.train(on_shards(recipe, folder, tmp_path / "third"))


def test_moments_are_kept_by_shard_and_shared_by_runs(chain, tmp_path, monkeypatch):
    from kgcli.training.caches import moments

    recipe = smoke(chain, "instruct", "data.pool=16", out=tmp_path / "generator")
    write_world(tmp_path / "world", open_source(recipe.data, 64, "generate"), NUM, 64, max_rows=5)
    own = on_shards(recipe, tmp_path / "world", tmp_path / "one", moments=str(tmp_path / "moments"))
    filled, fill = [], moments._fill

    def counted(folder, images, *given):
        if len(filled) == 2 and interrupted:
            raise KeyboardInterrupt
        filled.append(images.part.first)
        fill(folder, images, *given)

    interrupted = True
    monkeypatch.setattr(moments, "_fill", counted)
    with pytest.raises(KeyboardInterrupt):
        training.Run(own).pool()
    interrupted = False
    pool = training.Run(own).pool()
    assert filled == [0, 5, 10, 15]  # the interrupted one goes on where it was
    whole = training.Run(recipe).pool()
    rows = [15, 3, 9, 0, 4, 5]
    found, wanted = pool.rows(rows), whole.rows(rows)
    assert torch.equal(found["subject"], wanted["subject"])
    assert torch.allclose(found["moments"], wanted["moments"], atol=2e-3)  # batches of other sizes round differently
    filled.clear()
    training.Run(on_shards(recipe, tmp_path / "world", tmp_path / "two", moments=str(tmp_path / "moments"))).pool()
    assert filled == []


def test_no_room_for_moments_is_one_line(tmp_path):
    import resource

    from kgcli.data.pool import Pool
    from kgcli.errors import OutputError

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OutputError, match=r"moments\.npy\.partial cannot be written: the file would be larger"):
            Pool.create(tmp_path / "pool", 100, (8, 8, 8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_cached_hidden_states_train_as_computed_ones(chain, tmp_path):
    (tmp_path / "captions.txt").write_text("".join(f"{'a cat and ' * (n % 4)}a dog {n}\n" for n in range(11)))
    data = {"sources": [{"kind": "captions", "path": str(tmp_path / "captions.txt")}], "batch_size": 4}
    recipe = smoke(chain, "align")
    losses = {}
    for name, hidden in (("computed", False), ("cached", True)):
        values = recipe.model_dump(mode="json") | {"data": data | {"hidden": hidden, "num_workers": 0}}
        training.train(Recipe.model_validate(values | {"output_dir": str(tmp_path / name)}))
        losses[name] = [row["loss"] for row in rows_of(tmp_path / name)]
    assert losses["computed"] == pytest.approx(losses["cached"], rel=1e-4)
    written = (tmp_path / "cached/hidden/hidden.npy").stat().st_mtime_ns
    next(training.Run(Recipe.model_validate(values | {"output_dir": str(tmp_path / "cached")})).batches(None, 0))
    assert (tmp_path / "cached/hidden/hidden.npy").stat().st_mtime_ns == written
    captions = (tmp_path / "captions.txt").read_text()
    (tmp_path / "captions.txt").write_text(captions.replace("dog 7", "cat 7"))  # of one size, so read to be seen
    next(training.Run(Recipe.model_validate(values | {"output_dir": str(tmp_path / "cached")})).batches(None, 0))
    assert (tmp_path / "cached/hidden/hidden.npy").stat().st_mtime_ns != written


def test_cached_hidden_states_train_an_aligner_as_computed_ones(chain, tmp_path):
    """Their images are seen once, when they are cached."""
    settings = ["train=aligner", "data.pool=11", "data.keep=true", "data.num_workers=0"]
    losses = {}
    for name in ("false", "true"):
        recipe = smoke(chain, "instruct", *settings, f"data.hidden={name}", out=tmp_path / name)
        training.train(recipe)
        losses[name] = [row["loss"] for row in rows_of(tmp_path / name)]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)
    run = training.Run(recipe)
    written = (tmp_path / "true/hidden/hidden.npy").stat().st_mtime_ns
    pool, read = run.pool(), run.source.read
    rows = []
    run.source.read = lambda row: rows.append(row) or read(row)
    run._hidden(run.stage.collator(pool))
    assert rows == [0]  # the nano world's fingerprint tells the others
    run.recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"drop_entity_text": 0.25})})
    run._hidden(run.stage.collator(pool))
    assert rows == [0, *range(11)]  # nothing new is computed for the same words and images
    run.recipe = recipe
    batch = next(run.batches(pool, 0))
    assert (tmp_path / "true/hidden/hidden.npy").stat().st_mtime_ns == written
    assert batch.images is None and batch.hidden is not None and batch.image_mask.any()


def test_an_image_of_a_row_that_changes_is_refused(chain, tmp_path):
    recipe = smoke(
        chain, "instruct", "train=aligner", "data.hidden=true", "data.pool=11", "data.keep=true", out=tmp_path
    )
    run = training.Run(recipe)
    collator = run.stage.collator(run.pool())
    collator.hidden = run._hidden(collator)
    samples = [run.source.read(row) for row in range(3)]
    assert collator(samples, [0, 1, 2]).hidden is not None
    changed = dataclasses.replace(samples[0], images=tuple(ImageOps.invert(one) for one in samples[0].images))
    with pytest.raises(ConfigError, match="the images of a row change from sample to sample"):
        collator([changed, *samples[1:]], [0, 1, 2])


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        ("align", [], "the source is endless"),
        ("instruct", ["data.pool=8", "data.keep=true"], "stage instruct has no frozen MLLM"),
        ("align", ["data.pool=8"], "the words of a row change from sample to sample"),
        ("pretrain", [], "stage pretrain has no frozen MLLM"),
        ("align", ["parallel=fsdp2"], "data.hidden needs the whole MLLM on one process"),
    ],
)
def test_hidden_states_that_cannot_be_cached_are_refused(chain, tmp_path, stage, settings, message):
    with pytest.raises(ConfigError, match=message):
        training.train(smoke(chain, stage, "data.hidden=true", *settings, out=tmp_path))


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_packed_training_has_the_gradients_of_unpacked(chain, tmp_path, stage):
    gradients = []
    for pack in ("null", "128"):
        run = training.Run(smoke(chain, stage, f"pack={pack}", "data.batch_size=8", out=tmp_path / pack))
        batch = next(run.batches(run.pool(), 0))
        run.stage.train()
        losses = run.forward(batch)
        torch.stack(list(losses.values())).sum().backward()
        gradients.append({name: p.grad for name, p in run.trained.items() if p.grad is not None} | losses)
    plain, packed = gradients
    assert plain.keys() == packed.keys()
    for name, value in plain.items():
        assert torch.allclose(value, packed[name], atol=1e-5), name


def test_stages_that_cannot_pack_say_so(chain, tmp_path):
    with pytest.raises(ConfigError, match="the loss of stage align counts the padding; set data.bucket"):
        training.Run(smoke(chain, "align", "pack=128", out=tmp_path))
    with pytest.raises(ConfigError, match="stage unet has no MLLM"):
        training.Run(smoke(chain, "unet", "pack=128", out=tmp_path))


def test_weights_may_be_fractions_of_tokens(chain, tmp_path):
    (tmp_path / "short.txt").write_text("a cat\na dog\n")
    (tmp_path / "long.txt").write_text("a cat and a dog and a fox and a red robot on the beach\na cat and a dog\n")
    sources = [{"kind": "captions", "path": str(tmp_path / f"{name}.txt")} for name in ("short", "long")]
    data = DataConfig.model_validate({"sources": sources, "batch_size": 4, "weigh": "tokens", "keep": True})
    run = training.Run(smoke(chain, "pretrain", out=tmp_path).model_copy(update={"data": data}))
    length = run.stage.collator(None).length
    samples = [run.source.sample(number) for number in range(2000)]
    tokens = {name: sum(length(one.fragments) for one in samples if name in one.origin) for name in ("short", "long")}
    assert tokens["short"] / tokens["long"] == pytest.approx(1, rel=0.06)
    assert sum("short" in one.origin for one in samples) > 1200


def test_held_out_samples_are_weighed_by_tokens_too(chain, tmp_path):
    (tmp_path / "short.txt").write_text("a cat\na dog\n")
    (tmp_path / "long.txt").write_text("a cat and a dog and a fox and a red robot on the beach\na cat and a dog\n")
    sources = [{"kind": "captions", "path": str(tmp_path / f"{name}.txt")} for name in ("short", "long")]
    shares = []
    for weigh in ("samples", "tokens"):
        data = DataConfig.model_validate({"sources": sources, "batch_size": 64, "weigh": weigh, "keep": True})
        recipe = smoke(chain, "pretrain", "validation.every=1", out=tmp_path).model_copy(update={"data": data})
        validation = recipe.validation.model_copy(update={"sources": data.sources})
        held_out = training.Validation(training.Run(recipe.model_copy(update={"validation": validation}))).source
        shares.append(sum("short" in held_out.sample(number).origin for number in range(1000)))
    assert shares[0] == 500 and shares[1] > 600


@pytest.mark.parametrize("hidden", [False, True])
def test_captions_that_are_too_long_are_counted_and_passed_over(chain, tmp_path, hidden):
    recipe = smoke(chain, "align", out=tmp_path / "generator")
    words = [f"{number} red mats" + " on a red mat" * (500 if number == 2 else 1) for number in range(6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"caption": one}) + "\n" for one in words))
    source = {"kind": "captions", "path": str(tmp_path / "a.jsonl")}

    def trained(out, faults):
        data = {
            "sources": [source],
            "batch_size": 4,
            "num_workers": 0,
            "faults": faults,
            "keep": hidden,
            "hidden": hidden,
        }
        values = recipe.model_dump(mode="json") | {"data": data, "output_dir": str(out)}
        training.train(Recipe.model_validate(values))

    trained(tmp_path / "run", "skip")
    (fault,) = [json.loads(line) for line in (tmp_path / "run/faults.jsonl").read_text().splitlines()]
    assert fault["row"] == "line 3" and "the model takes at most" in fault["reason"]
    with pytest.raises(PromptError, match=r"a\.jsonl line 3 is \d+ tokens long"):
        trained(tmp_path / "other", "stop")
