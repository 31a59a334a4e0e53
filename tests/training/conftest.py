"""Run folders of the smoke recipes, shared by the tests of training."""

import pytest
from smoke_runs import CHAIN, smoke

from kgcli.training import loop as training


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """Run folders of all stages, each made from those before it, as `kg` makes the shipped model."""
    root = tmp_path_factory.mktemp("chain")
    for stage in CHAIN:
        own = ["options.vision_blocks=1"] if stage in ("pretrain", "instruct") else []
        training.train(smoke(root, stage, *own))
    return root
