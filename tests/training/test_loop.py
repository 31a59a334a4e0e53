"""Laws of training: what moves, what is seen, what is lost of, and that a killed run goes on as if nothing had been."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from smoke_runs import CHAIN, files_of, rows_of, smoke

from kgcli.data.batch import Collator
from kgcli.data.loader import Batches
from kgcli.data.sources import open_source
from kgcli.errors import ConfigError, IncompatibleError, MissingError, PromptError
from kgcli.files import recipes_folder
from kgcli.model.diffusion import Diffusion
from kgcli.model.nano_recognisers import Recognisers
from kgcli.model.randomness import StepRandom
from kgcli.recipe import dump_recipe, load_recipe
from kgcli.training import loop as training
from kgcli.training import run as runs
from kgcli.training.logging import Metrics
from kgcli.training.stages import kosmosg as stages
from kgcli.weights.load import load_kosmosg
from kgcli.weights.safetensors import read_weights


def changed(before, after):
    """Names of the weights that two model folders do not share."""
    one, other = (read_weights(folder / "model.safetensors") for folder in (before, after))
    return {name for name in other if name not in one or not torch.equal(one[name], other[name])}


@pytest.fixture
def batch_of(chain):
    """The stage of a smoke recipe and its first batch."""

    def make(name, *overrides):
        run = training.Run(smoke(chain, name, *overrides))
        return run.stage.eval(), next(run.batches(run.pool(), 0))

    return make


@pytest.mark.parametrize("stage", CHAIN)
def test_a_run_leaves_its_recipe_metrics_checkpoints_and_result(chain, stage):
    folder = chain / stage
    own = ["options.vision_blocks=1"] if stage in ("pretrain", "instruct") else []
    assert load_recipe(str(folder / "recipe.yaml")) == smoke(chain, stage, *own)
    assert [row["step"] for row in rows_of(folder)] == [1, 2, 3, 4]
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in rows_of(folder))
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step_0000002", "step_0000004"]
    assert json.loads((folder / "env.json").read_text())["torch"] == torch.__version__
    assert list((folder / "tensorboard").iterdir())
    assert not list(folder.rglob("*.partial"))
    if stage in ("vae", "unet", "instruct"):
        with Image.open(folder / "samples" / "step_0000004.png") as grid:
            assert min(grid.size) >= 64


def test_pretrain_moves_the_encoder_and_leaves_the_first_blocks_of_the_clip_tower(chain):
    recipe = smoke(chain, "pretrain", "options.vision_blocks=1")
    fresh = training.Run(recipe).stage.state_dict()
    trained = load_file(chain / "pretrain/final/model.safetensors")
    moved = {name for name, tensor in trained.items() if not torch.equal(tensor, fresh[f"model.{name}"])}
    expected = ("mllm.", "resampler.", "vision.blocks.1.", "vision.final_norm.")
    assert {name for name in moved if not name.startswith(expected)} == set()
    assert all(any(name.startswith(prefix) for name in moved) for prefix in expected)


def test_align_moves_only_the_aligner(chain):
    moved = changed(chain / "pretrain/final", chain / "align/final")
    assert all(name.startswith("aligner.") for name in moved)
    assert any(name.startswith("aligner.encoder.") for name in moved)
    assert any(name.startswith("aligner.decoder.") for name in moved)


def test_instruct_moves_the_encoder_and_the_aligner_and_ships_no_way_back(chain):
    moved = changed(chain / "align/final", chain / "instruct/final")
    expected = ("mllm.", "resampler.", "aligner.encoder.", "vision.blocks.1.", "vision.final_norm.")
    assert {name for name in moved if not name.startswith(expected)} == set()
    assert all(any(name.startswith(prefix) for name in moved) for prefix in expected)
    assert not any("aligner.decoder." in name for name in load_file(chain / "instruct/final/model.safetensors"))


def test_what_a_stage_starts_from_is_handed_on_untouched(chain):
    assert files_of(chain / "instruct/final/decoder") == files_of(chain / "unet/final")
    assert files_of(chain / "unet/final/vae") == files_of(chain / "vae/final/vae")
    for part in ("text_encoder", "tokenizer"):
        assert files_of(chain / "unet/final" / part) == files_of(chain / "clip/final" / part)
    assert files_of(chain / "instruct/final/tokenizer") == files_of(chain / "clip/final/sentencepiece")


def test_the_result_draws(chain):
    import kgcli

    model = kgcli.load(str(chain / "instruct/final"), device="cpu")
    (image,) = model.generate("a cat in Minecraft", seed=0)
    assert image.size == (64, 64)


def test_clip_goes_on_from_an_earlier_one_with_its_text_locked(chain, tmp_path):
    recipe = smoke(chain, "clip", "options.locked_text=1", "optim.warmup_steps=0", out=tmp_path)
    training.train(recipe.model_copy(update={"init_from": {"clip": str(chain / "clip/final")}}))
    before, after = (files_of(root / "final") for root in (chain / "clip", tmp_path))
    same = {path for path in before if before[path] == after[path]}
    assert before.keys() == after.keys()
    assert before.keys() - same == {Path("clip/model.safetensors")}  # the tokenizers too are the same files
    one, other = (read_weights(root / "final/clip/model.safetensors") for root in (chain / "clip", tmp_path))
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    assert {name.split(".")[0] for name in moved} >= {"vision_model", "visual_projection", "text_projection"}
    assert not any(name.startswith("text_model.") for name in moved)


def test_clip_trains_a_vision_tower_to_the_text_encoder_of_a_decoder(chain, tmp_path):
    recipe = smoke(chain, "clip", "options.locked_text=1", "optim.warmup_steps=0", out=tmp_path)
    training.train(recipe.model_copy(update={"init_from": {"text": str(chain / "unet/final")}}))
    for part in ("text_encoder", "tokenizer"):
        assert files_of(tmp_path / "final" / part) == files_of(chain / "unet/final" / part)
    assert (tmp_path / "final/sentencepiece/sentencepiece.model").is_file()
    start = load_recipe("smoke/clip").model_copy(update={"init_from": {"text": str(chain / "unet/final")}})
    first = training.Run(start).stage.clip.state_dict()
    end = read_weights(tmp_path / "final/clip/model.safetensors")
    moved = {name for name in first if not torch.equal(first[name], end[name])}
    assert any(name.startswith("vision_model.") for name in moved)
    assert not any(name.startswith("text_model.") for name in moved)


def test_recognisers_continue_from_earlier_ones(tmp_path):
    torch.manual_seed(0)
    earlier = Recognisers([8, 16], [8, 16, 16], 8)
    earlier.save(tmp_path / "judges")
    recipe = load_recipe("smoke/judge").model_copy(update={"init_from": {"judges": str(tmp_path / "judges")}})
    found = training.Run(recipe).stage.judges
    assert found.config == earlier.config
    assert torch.equal(found.scene.trunk.stem.weight, earlier.scene.trunk.stem.weight.half().float())


def test_a_unet_goes_on_from_an_earlier_one(chain):
    recipe = smoke(chain, "unet")
    start = {"unet": str(chain / "unet/final"), **recipe.init_from}
    unet = training.Run(recipe.model_copy(update={"init_from": start})).stage.diffusion.unet
    weights = read_weights(chain / "unet/final/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())
    assert all(parameter.requires_grad for parameter in unet.parameters())


def test_the_exported_vae_has_latents_of_unit_variance(chain):
    run = training.Run(smoke(chain, "unet"))
    pool = run.pool()
    mean = torch.from_numpy(pool.moments[:, :4].astype("float32"))
    assert mean.mean().abs() < 0.5
    assert 0.4 < mean.std() < 2.0


def test_the_language_model_is_asked_for_every_word_and_no_image_slot(batch_of):
    stage, batch = batch_of("pretrain")
    ids = stage.model.cfg.special_ids
    assert int(batch.image_mask.sum()) > 0
    with torch.no_grad():
        loss = stage(batch, StepRandom(0, 0, batch.numbers))["text"]
        hidden = stage.model.hidden(batch.tokens, batch.token_mask, batch.image_mask, batch.images)
        losses = []
        for row in range(len(batch.tokens)):
            for place in range(1, int(batch.token_mask[row].sum())):
                target = batch.tokens[row, place]
                if not batch.image_mask[row, place] and target not in (ids.boi, ids.eoi):
                    losses.append(F.cross_entropy(stage.model.mllm.logits(hidden[row, place - 1]), target))
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    assert (batch.tokens == ids.eos).any(1).all()


@pytest.mark.parametrize(("stage", "kind"), [("align", "decoder"), ("align", "full"), ("instruct", "linear")])
def test_another_aligner_than_the_folders_is_made_anew_and_trained(chain, stage, kind, tmp_path):
    length = 64 if kind == "linear" else 32  # the others have as many vectors as CLIP
    parts = f"parts.aligner={{kind: {kind}, num_layers: 1, num_queries: {length}}}"
    recipe = smoke(chain, stage, parts, "data.kinds={caption: 1.0}", "steps=1", out=tmp_path)
    sources = {**recipe.init_from, "model": str(chain / "pretrain/final")}
    training.train(recipe.model_copy(update={"init_from": sources}))
    ablated = load_kosmosg(tmp_path / "final").cfg.aligner
    assert (ablated.kind, ablated.num_layers, ablated.num_queries) == (kind, 1, length)
    moved = changed(chain / "pretrain/final", tmp_path / "final")
    assert any(name.startswith("aligner.encoder.") for name in moved)
    assert stage == "instruct" or all(name.startswith("aligner.") for name in moved)


def test_align_sees_no_images(batch_of):
    stage, batch = batch_of("align")
    assert batch.images is None
    assert not batch.image_mask.any()
    assert set(stage(batch, StepRandom(0, 0, batch.numbers))) == {"mse", "reconstruction"}


def test_a_dropped_condition_says_nothing_of_the_prompt(batch_of, monkeypatch):
    stage, batch = batch_of("instruct")
    other = batch.__class__(**{**batch.fields(), "images": -batch.images, "tokens": batch.tokens.clone()})
    other.tokens[:, 1] = 5

    def loss(given):
        with torch.no_grad():
            return stage(given, StepRandom(1, 0, batch.numbers))["diffusion"]

    assert stages.DROP_CONDITION == 0.1
    monkeypatch.setattr(stages, "DROP_CONDITION", 0.0)
    assert not torch.equal(loss(batch), loss(other))
    monkeypatch.setattr(stages, "DROP_CONDITION", 1.0)
    assert torch.equal(loss(batch), loss(other))


def test_the_image_changes_what_instruct_conditions_on(batch_of):
    stage, batch = batch_of("instruct")
    given = (batch.tokens, batch.token_mask, batch.image_mask)
    with torch.no_grad():
        assert not torch.equal(stage.model.encode(*given, batch.images), stage.model.encode(*given, -batch.images))


def test_a_run_begins_its_data_where_the_last_one_ended(chain):
    run = training.Run(smoke(chain, "vae"))
    whole = [batch.targets for batch in run.batches(None, 0)]
    rest = [batch.targets for batch in run.batches(None, 2)]
    assert len(whole) == 4
    assert all(torch.equal(one, other) for one, other in zip(whole[2:], rest, strict=True))
    assert not torch.equal(whole[0], whole[1])


def test_processes_share_each_step_between_them(chain):
    recipe = smoke(chain, "vae")
    source, collator = open_source(recipe.data, 64, "generate"), Collator(frozenset({"targets"}), 64, 0)
    alone = Batches(source, collator, batch_size=4)[3].targets
    first, second = (Batches(source, collator, batch_size=4, rank=rank, num_ranks=2)[3].targets for rank in range(2))
    assert torch.equal(alone[0::2], first)
    assert torch.equal(alone[1::2], second)


def test_samples_kept_in_memory_are_the_same(chain):
    recipe = smoke(chain, "pretrain")
    fresh = recipe.model_copy(update={"data": recipe.data.model_copy(update={"keep": False, "pool": None})})
    collator = training.Run(recipe).stage.collator(None)
    kept, fresh = (
        Batches(open_source(one.data, 64, "read"), collator, batch_size=one.data.batch_size) for one in (recipe, fresh)
    )
    assert torch.equal(kept[0].tokens, fresh[0].tokens)
    assert torch.equal(kept[0].tokens, kept[2].tokens)  # a pool of two batches comes round


class Stopping(Batches):
    """The third batch comes with a SIGTERM."""

    def __getitem__(self, step):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return super().__getitem__(step)


@pytest.mark.parametrize("stage", CHAIN)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(chain, stage, tmp_path, monkeypatch):
    def recipe(name):
        return smoke(chain, stage, "steps=5", "log_every=4", "save_every=100", "sample_every=4", out=tmp_path / name)

    training.train(recipe("whole"))
    monkeypatch.setattr(runs, "Batches", Stopping)
    with pytest.raises(KeyboardInterrupt):
        training.train(recipe("stopped"))
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "stopped/checkpoints").iterdir()] == ["step_0000003"]
    assert not (tmp_path / "stopped/final").exists()
    training.train(recipe("stopped"), resume="true")
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")
    assert files_of(tmp_path / "stopped/final") == files_of(tmp_path / "whole/final")


def test_a_killed_process_goes_on_from_its_last_checkpoint(chain, tmp_path):
    settings = ("steps=24", "save_every=2", "log_every=2", "sample_every=24", "data.num_workers=1")
    killed, whole = (smoke(chain, "instruct", *settings, out=tmp_path / name) for name in ("killed", "whole"))
    training.train(whole)
    file = tmp_path / "killed.yaml"
    file.write_text(dump_recipe(killed))
    process = subprocess.Popen([sys.executable, "-m", "kgcli", "instruct", str(file)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "killed").glob("checkpoints/step_*")):
        assert process.poll() is None, f"ended by itself with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/final").exists()
    training.train(killed)
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    assert files_of(tmp_path / "killed/final") == files_of(tmp_path / "whole/final")


def test_the_command_says_where_it_stopped(chain, tmp_path, monkeypatch, kg):
    file = tmp_path / "vae.yaml"
    file.write_text(dump_recipe(smoke(chain, "vae", out=tmp_path / "run")))
    monkeypatch.setattr(runs, "Batches", Stopping)
    ran = kg("base", "vae", file)
    assert ran.code == 130
    assert f"run folder {tmp_path / 'run'}: starting anew" in ran.err.splitlines()[0]
    assert f"stopped by signal {signal.SIGTERM.value}; step 3 is saved" in ran.err
    monkeypatch.setattr(runs, "Batches", Batches)
    ran = kg("base", "vae", file)
    assert ran.code == 0
    assert "resuming from step 3" in ran.err.splitlines()[0]
    assert ran.lines == [str(tmp_path / "run/final")]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_every_signal_that_ends_a_session_saves_first(chain, name, tmp_path, monkeypatch):
    class Ended(Batches):
        def __getitem__(self, step):
            if step == 1:
                signal.raise_signal(getattr(signal, name))
            return super().__getitem__(step)

    monkeypatch.setattr(runs, "Batches", Ended)
    before = signal.signal(getattr(signal, name), signal.SIG_DFL)  # a shell's background jobs ignore SIGINT
    try:
        with pytest.raises(KeyboardInterrupt):
            training.train(smoke(chain, "vae", "save_every=100", out=tmp_path))
    finally:
        signal.signal(getattr(signal, name), before)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_0000002"]


def test_values_are_read_from_the_device_once_a_row_and_not_at_every_step(chain, tmp_path, monkeypatch):
    run = training.Run(smoke(chain, "vae", "steps=7", "log_every=3", out=tmp_path))
    read, reading, rows = Metrics._read, [], []

    def noting(self):
        reading.append(run.trainer.step)
        read(self)
        reading.append(0)

    def watched(name):
        method = getattr(torch.Tensor, name)

        def call(self, *args):
            assert reading[-1:] == [run.trainer.step], f"step {run.trainer.step} waits for the device: {name}"
            return method(self, *args)

        return call

    metrics, batches = Metrics(run.recipe, 0, {}), list(run.batches(None, 0))
    with metrics, monkeypatch.context() as patch:
        patch.setattr(Metrics, "_read", noting)
        for name in ("__float__", "item", "tolist"):
            patch.setattr(torch.Tensor, name, watched(name))
        for values in run.trainer.steps(batches, run.losses):
            rows.append(values)
            metrics.add(run.trainer.step, values)
    assert reading[::2] == [3, 6, 7]
    mean = sum(float(values["loss"]) for values in rows[3:6]) / 3
    assert rows_of(tmp_path)[1]["loss"] == float(f"{mean:.6g}")


DATA = str(recipes_folder() / "example-data")


@pytest.mark.parametrize(
    ("stage", "source"),
    [
        ("vae", {"kind": "images", "path": f"{DATA}/photos"}),
        ("clip", {"kind": "images", "path": f"{DATA}/photos"}),
        ("unet", {"kind": "images", "path": f"{DATA}/photos"}),
        ("pretrain", {"kind": "images", "path": f"{DATA}/photos"}),
        ("align", {"kind": "captions", "path": "captions.txt"}),
        ("instruct", {"kind": "prompts", "path": f"{DATA}/prompts.jsonl"}),
    ],
)
def test_every_stage_trains_on_files_of_ones_own(chain, stage, source, tmp_path):
    (tmp_path / "captions.txt").write_text("a cat in the snow\ntwo dogs on the beach\nan owl\n")
    if stage == "align":
        source = {**source, "path": str(tmp_path / "captions.txt")}
    sources = f"data.sources=[{json.dumps(source)}]"
    vocabulary = ["options.sentencepiece_vocab=60", "options.clip_vocab=560"] if stage == "clip" else []
    recipe = smoke(
        chain, stage, sources, "data.kinds={}", "data.keep=false", "steps=2", *vocabulary, out=tmp_path / "run"
    )
    training.train(recipe)
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2]
    assert (tmp_path / "run/final").is_dir()
    first = files_of(tmp_path / "run/final")
    training.train(recipe, resume="true")
    assert files_of(tmp_path / "run/final") == first


def test_the_example_recipe_trains_the_shipped_model_on_files(kg, tmp_path):
    ran = kg("instruct", "example-data/instruct", "steps=2", "log_every=1", "sample_every=2", "data.batch_size=3")
    assert ran.code == 0, ran.err
    run = tmp_path / "runs/example-data/instruct"
    assert [row["step"] for row in rows_of(run)] == [1, 2]
    parts = [json.loads(path.read_text()) for path in (run / "pool").rglob("made_of.json")]
    assert sorted(part["num"] for part in parts) == [20, 30]  # of each source
    assert kg("generate", "a cat", "--model", run / "final", "--steps", "1", "-o", "cat.png").code == 0
    # The recipe of the run holds absolute paths: it goes on from anywhere.
    assert kg("instruct", run / "recipe.yaml").code == 0


@pytest.mark.parametrize(
    ("stage", "data", "message"),
    [
        ("instruct", "data.kinds={text: 1}", "stage instruct needs samples with target"),
        ("align", "data.kinds={pair: 1}", "stage align needs samples with caption"),
        ("clip", "data.kinds={captioned: 1}", "stage clip needs samples with images"),
        ("judge", "data.kinds={judged: 1, edit: 1}", "stage judge trains on samples of kind judged alone; remove edit"),
        ("eval_dino", "data.kinds={judged: 1}", "stage eval_dino trains on samples of kind rescened alone"),
    ],
)
def test_data_that_a_stage_cannot_use_are_refused_before_it_is_built(chain, stage, data, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        training.train(smoke(chain, stage, data, out=tmp_path))


def test_a_prompt_longer_than_the_model_takes_is_named(chain, tmp_path):
    (tmp_path / "captions.txt").write_text("a cat\n" + "a very long story of a cat " * 100 + "\n")
    source = {"kind": "captions", "path": str(tmp_path / "captions.txt")}
    recipe = smoke(chain, "align", f"data.sources=[{json.dumps(source)}]", "data.kinds={}", out=tmp_path / "run")
    with pytest.raises(PromptError, match=r"captions\.txt line 2 is \d+ tokens long .* at most 256"):
        training.train(recipe)


def test_a_finished_run_is_not_trained_again(chain):
    before = files_of(chain / "align/final")
    rows = rows_of(chain / "align")
    training.train(smoke(chain, "align"))
    assert files_of(chain / "align/final") == before
    assert rows_of(chain / "align") == rows


def test_a_run_can_be_begun_anew(chain, tmp_path):
    recipe = smoke(chain, "align", out=tmp_path / "run")
    training.train(recipe)
    first = files_of(tmp_path / "run/final")
    training.train(recipe, resume="none")
    assert files_of(tmp_path / "run/final") == first
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_checkpoint_of_another_model_is_refused(chain, tmp_path):
    with pytest.raises(IncompatibleError, match="belongs to another recipe: stage was align, is vae"):
        training.train(smoke(chain, "vae", out=tmp_path / "run"), resume=str(chain / "align/checkpoints/step_0000004"))


@pytest.mark.parametrize("stage", CHAIN)
def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(chain, stage, tmp_path):
    said = training.train(smoke(chain, stage, out=tmp_path / "run"), dry_run=True)
    assert f"{stage}: 4 steps of 4 samples" in said
    assert "one batch: " in said
    assert ("kg base " in said) == (stage in ("vae", "clip", "unet"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "override", "message"),
    [
        ("align", "stage=pretrian", "there is no stage 'pretrian'"),
        ("vae", "data.kinds={captoned: 1}", "there is no kind of sample 'captoned'; there are captioned"),
        ("vae", "data.kinds={captioned: 0}", "one must be above 0"),
        ("vae", "options.edge=1", r"unknown key options\.edge; did you mean edges\?"),
        ("vae", "parts={}", r"stage vae needs parts\.vae"),
        ("vae", "parts.vae.use_quant_conv=false", r"parts\.vae: use_quant_conv and use_post_quant_conv must be true"),
        ("align", "parts.aligner={layers: 2}", r"parts\.aligner: unknown key layers; did you mean num_layers\?"),
        ("instruct", "data.pool=null", r"set data\.pool"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_one_clear_error(chain, stage, override, message, tmp_path):
    recipe = smoke(chain, stage, out=tmp_path)
    key, _, text = override.partition("=")
    with pytest.raises(ConfigError, match=message):
        if key == "stage":
            recipe = recipe.model_copy(update={"stage": text})
        else:
            recipe = smoke(chain, stage, override, out=tmp_path)
        training.train(recipe)


def test_a_stage_that_was_not_run_is_named(chain, tmp_path):
    recipe = smoke(chain, "align", out=tmp_path)
    absent = recipe.model_copy(update={"init_from": {**recipe.init_from, "model": str(tmp_path / "absent")}})
    with pytest.raises(MissingError, match=r"init_from\.model: there is no folder .*absent; run the stage"):
        training.train(absent)
    with pytest.raises(ConfigError, match=r"needs init_from\.text"):
        training.train(recipe.model_copy(update={"init_from": {"model": recipe.init_from["model"]}}))


@pytest.mark.parametrize(("side", "most"), [(32, 8), (64, 4), (256, 1)])
def test_the_larger_images_are_the_fewer_are_encoded_at_once(chain, side, most, tmp_path, monkeypatch):
    monkeypatch.setattr("kgcli.training.caches.moments.ENCODED_PIXELS", 4 * 64**2)
    run, encoded = training.Run(smoke(chain, "unet", "data.pool=8", f"image_size={side}", out=tmp_path)), []
    monkeypatch.setattr(Diffusion, "moments", spy(Diffusion.moments, encoded))
    assert len(run.pool().moments) == 8
    assert max(encoded) == most and sum(encoded) == 8


def spy(method, rows):
    """The method, noting the number of rows it is given."""

    def call(self, pixels):
        rows.append(len(pixels))
        return method(self, pixels)

    return call


@pytest.mark.parametrize("change", ["data.pool=9", "data.seed=1", "image_size=32", "damage"])
def test_a_pool_is_kept_for_as_long_as_its_images_are_the_recipes(chain, change, tmp_path):
    def numbers(*overrides):
        return training.Run(smoke(chain, "unet", *overrides, out=tmp_path)).pool().moments.copy()

    first = numbers()
    written = (tmp_path / "pool/moments.npy").stat().st_mtime_ns
    assert (numbers() == first).all()
    assert (tmp_path / "pool/moments.npy").stat().st_mtime_ns == written
    if change == "damage":
        (tmp_path / "pool/made_of.json").write_text("{")
        assert (numbers() == first).all()
    else:
        other = numbers(change)
        assert other.shape != first.shape or (other != first).any()
    assert (tmp_path / "pool/moments.npy").stat().st_mtime_ns != written
