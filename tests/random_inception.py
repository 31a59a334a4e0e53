"""Inception files of the true architecture whose weights know nothing: for tests and for trying a command out.

Their hash is the word "random" with the seed, which goes into the protocol and forbids comparing with real scores.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as inception

from kgcli.evaluation.extractors.weight_files import TABLE, Weights

NUM_CLASSES = 1008  # of the TensorFlow network


class _Scripted(nn.Module):
    """The interface of NVIDIA's file: `layers` takes what lies in [-1, 1]."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers((pixels - 128) / 128)


def write_random_inception(folder: Path, seed: int = 0) -> dict[str, Weights]:
    """Write both files of the table into a folder, with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _parts()
        for module in parts.modules():
            if isinstance(module, nn.Conv2d):  # keeps the size of what passes
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    parts.eval().requires_grad_(False)
    state, clean = folder / TABLE["inception"].file, folder / TABLE["inception-clean"].file
    torch.save(parts.state_dict(), state)
    layers = nn.Sequential(*(part for name, part in parts.items() if name != "fc"), nn.Flatten())
    with torch.inference_mode(), warnings.catch_warnings():  # TorchScript is deprecated, and the file's only format
        warnings.simplefilter("ignore")
        torch.jit.trace(_Scripted(layers), torch.zeros(1, 3, 299, 299), check_trace=False).save(str(clean))
    return {"inception": Weights(state, f"random-{seed}"), "inception-clean": Weights(clean, f"random-{seed}")}


def _parts() -> nn.ModuleDict:
    """The layers by the names of torch-fidelity's class, in order."""
    return nn.ModuleDict(
        {
            "Conv2d_1a_3x3": inception.BasicConv2d(3, 32, kernel_size=3, stride=2),
            "Conv2d_2a_3x3": inception.BasicConv2d(32, 32, kernel_size=3),
            "Conv2d_2b_3x3": inception.BasicConv2d(32, 64, kernel_size=3, padding=1),
            "MaxPool_1": nn.MaxPool2d(kernel_size=3, stride=2),
            "Conv2d_3b_1x1": inception.BasicConv2d(64, 80, kernel_size=1),
            "Conv2d_4a_3x3": inception.BasicConv2d(80, 192, kernel_size=3),
            "MaxPool_2": nn.MaxPool2d(kernel_size=3, stride=2),
            "Mixed_5b": inception.InceptionA(192, pool_features=32),
            "Mixed_5c": inception.InceptionA(256, pool_features=64),
            "Mixed_5d": inception.InceptionA(288, pool_features=64),
            "Mixed_6a": inception.InceptionB(288),
            "Mixed_6b": inception.InceptionC(768, channels_7x7=128),
            "Mixed_6c": inception.InceptionC(768, channels_7x7=160),
            "Mixed_6d": inception.InceptionC(768, channels_7x7=160),
            "Mixed_6e": inception.InceptionC(768, channels_7x7=192),
            "Mixed_7a": inception.InceptionD(768),
            "Mixed_7b": inception.InceptionE_1(1280),
            "Mixed_7c": inception.InceptionE_2(2048),
            "AvgPool": nn.AdaptiveAvgPool2d(output_size=(1, 1)),
            "fc": nn.Linear(2048, NUM_CLASSES),
        }
    )
