"""Python takes the names of the flags: `kg generate --num-images 2` is `generate(..., num_images=2)`."""

from __future__ import annotations

import inspect

import pytest

import kgcli
from kgcli.cli.options import GenerateFlags, takes_flags
from kgcli.config import SamplingConfig
from kgcli.errors import UsageError
from kgcli.inference.model import Model, load

# What is read, printed and written; in Python the caller does so.
COMMAND_LINE = {
    *("--out", "--batch", "--from", "--allow-download", "--json", "--no-metadata", "--overwrite", "--skip-existing"),
    *("--quiet", "--verbose", "--preview"),
}


@takes_flags(GenerateFlags)
def command(*, flags):
    """Have all flags."""


def long_names():
    parameters = inspect.signature(command).parameters.values()
    names = [name for one in parameters for name in one.annotation.__metadata__[0].param_decls]
    return [name.split("/")[0] for name in names if name.startswith("--")]


def keywords():
    taken = {name for function in (Model.generate, load) for name in inspect.signature(function).parameters}
    for name, field in SamplingConfig.model_fields.items():
        taken |= {name, *(field.validation_alias.choices if field.validation_alias else ())}
    return taken


@pytest.mark.parametrize("flag", sorted(set(long_names()) - COMMAND_LINE))
def test_a_flag_has_its_keyword(flag):
    assert flag.removeprefix("--").replace("-", "_") in keywords()


@pytest.fixture(scope="module")
def model(tiny_model):
    return kgcli.load(str(tiny_model), device="cpu")


def pixels(images):
    return [image.tobytes() for image in images]


def test_the_same_call_by_any_name(model, tmp_path):
    path = tmp_path / "cat.png"
    model.generate("a cat", seed=3)[0].save(path)
    new = model.generate("a <image:-1>", image=str(path), seed=[1, 2], steps=2, cfg_scale=2.0)
    old = model.generate(
        "a <image:-1>", images=[str(path)], seed=1, num_images=2, num_inference_steps=2, guidance_scale=2.0
    )
    assert len(new) == 2 and pixels(new) == pixels(old)
    assert pixels(model.edit(str(path), "add a hat", seed=[5])) == pixels(model.edit(str(path), "add a hat", seed=5))


def test_seeds_and_numbers_must_agree(model):
    with pytest.raises(UsageError, match="2 seeds give 2 images"):
        model.generate("a cat", seed=[1, 2], num_images=3)
    with pytest.raises(UsageError, match="unknown setting colour"):
        model.generate("a cat", colour="red")
