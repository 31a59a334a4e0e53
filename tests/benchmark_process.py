"""Benchmarks in processes of their own, which may be killed, and networks of the true architectures to score with."""

import os
import signal
import subprocess
import sys
import time

DEADLINE = 120  # seconds
# `kg` where the weights of CLIP may be any: real ones cannot be had in a test.
KG = """
import dataclasses, sys
from kgcli.evaluation.extractors import weight_files as weightfiles
weightfiles.TABLE["clip"] = dataclasses.replace(weightfiles.TABLE["clip"], sha256="")
from kgcli.cli import main
main(sys.argv[1:])
"""


def start_python(script, *args):
    return subprocess.Popen([sys.executable, "-c", script, *map(str, args)], env=dict(os.environ))


def kill_at(process, folder, num, deadline=DEADLINE):
    """Kill -9 a process as soon as so many files are there; whether it was still at work."""
    until = time.monotonic() + deadline
    while process.poll() is None and sum(1 for _ in folder.glob("[!.]*")) < num:
        if time.monotonic() > until:
            process.kill()
            raise TimeoutError(f"{folder} has fewer than {num} files after {deadline} s")
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def write_random_weights(folder):
    """DINO ViT-S/16 and CLIP ViT-B/32 in the files of the published ones, with weights that know nothing."""
    import open_clip
    import timm
    import torch

    from kgcli.evaluation.extractors.weight_files import TABLE

    folder.mkdir()
    torch.manual_seed(0)
    dino = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0)
    torch.save(dino.state_dict(), folder / TABLE["dino"].file)
    clip = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)
    torch.save(clip.state_dict(), folder / TABLE["clip"].file)
    return folder
