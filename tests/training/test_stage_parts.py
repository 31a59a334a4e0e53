"""Laws of activation checkpointing and compilation by part: the same losses and gradients, fewer activations."""

import pytest
import torch

from kgcli.errors import ConfigError
from kgcli.model.randomness import StepRandom
from kgcli.recipe import load_recipe
from kgcli.training import loop as training
from kgcli.training.stages.parts import compile_parts

SMALL = ["data.batch_size=4", "data.pool=8", "data.num_workers=0"]
ALL = "activation_checkpointing=[vision, mllm, aligner, unet]"


def run_of(folder, *overrides, stage="instruct"):
    recipe = load_recipe(f"smoke/{stage}", [*SMALL, *overrides], stage=stage)
    start = {"model": "nano", "decoder": "nano/decoder"}
    return training.Run(recipe.model_copy(update={"output_dir": str(folder), "init_from": start}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


class Saved:
    """The bytes that autograd keeps for the backward pass."""

    def __init__(self):
        self.num_bytes = 0

    def pack(self, tensor):
        self.num_bytes += tensor.numel() * tensor.element_size()
        return tensor


def gradients_of(run):
    """Loss, gradients and kept bytes of one step, with dropout."""
    stage = run.stage.train()
    for module in stage.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    batch = next(run.batches(run.pool(), 0))
    saved = Saved()
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        loss = stage(batch, StepRandom(0, 0, batch.numbers))["diffusion"]
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}, saved.num_bytes


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_activations_computed_twice_give_the_same_gradients_in_less_memory(folder, mode):
    plain, checkpointed = (run_of(folder, f"train={mode}", *own) for own in ([], [ALL]))
    names = [list(run.trained) for run in (plain, checkpointed)]
    assert names[0] == names[1]
    loss, gradients, kept = gradients_of(plain)
    again, others, less = gradients_of(checkpointed)
    assert torch.equal(loss, again) and gradients.keys() == others.keys()
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())
    assert less < 0.5 * kept


@pytest.mark.slow
def test_previews_and_exports_are_those_of_a_run_without(folder, tmp_path):
    for name, own in (("plain", []), ("twice", [ALL])):
        training.train(run_of(tmp_path / name, "steps=2", "sample_every=2", *own).recipe)
    for file in ("final/model.safetensors", "samples/step_0000002.png"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


def test_a_part_that_a_stage_does_not_have_is_named(folder):
    message = "activation_checkpointing: stage instruct has no part clip; it has vision, mllm, aligner, unet"
    with pytest.raises(ConfigError, match=message):
        run_of(folder, "activation_checkpointing=[clip]")
    with pytest.raises(ConfigError, match=r"activation_checkpointing\.0: .*'vision', 'mllm'"):
        load_recipe("smoke/align", ["activation_checkpointing=[decoder]"])
    run = run_of(folder, "compile=[controlnet]")
    with pytest.raises(ConfigError, match="compile: stage instruct has no part controlnet"):
        compile_parts(run.stage, run.recipe)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler has its own
def test_compiled_parts_lose_as_much(folder):
    plain, compiled = (run_of(folder, *own) for own in (["steps=2"], ["compile=[mllm, aligner]", "steps=2"]))
    compile_parts(compiled.stage, compiled.recipe)
    assert list(plain.trained) == list(compiled.trained)
    for run in (plain, compiled):
        run.stage.train()
    steps = [list(run.trainer.steps(run.batches(run.pool(), 0), run.losses)) for run in (plain, compiled)]
    for one, other in zip(*steps, strict=True):
        torch.testing.assert_close(one["loss"], other["loss"], rtol=1e-4, atol=0)
        torch.testing.assert_close(one["grad_norm"], other["grad_norm"], rtol=1e-3, atol=0)
