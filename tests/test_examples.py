"""The short examples of public entry points run as they are written."""

import doctest

import pytest

from kgcli import engine
from kgcli.inference import model, pipeline
from kgcli.weights import load

EXAMPLES = {
    "load": (engine.load, engine),
    "generate": (engine.generate, engine),
    "edit": (engine.edit, engine),
    "encode": (engine.encode, engine),
    "train": (engine.train, engine),
    "evaluate": (engine.evaluate, engine),
    "inference.load": (model.load, model),
    "Model.generate": (model.Model.generate, model),
    "Model.edit": (model.Model.edit, model),
    "KosmosGPipeline": (pipeline.KosmosGPipeline.__call__, pipeline),
    "from_pretrained": (pipeline.KosmosGPipeline.from_pretrained, pipeline),
    "encode_prompt": (pipeline.KosmosGPipeline.encode_prompt, pipeline),
    "load_kosmosg": (load.load_kosmosg, load),
}


SLOW = ("evaluate",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in EXAMPLES]
)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry, module = EXAMPLES[name]
    (example,) = doctest.DocTestFinder(recurse=False).find(entry, name, module, vars(module).copy())
    assert example.examples, f"{name} has no example"
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0
