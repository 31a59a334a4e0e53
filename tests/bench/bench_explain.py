"""How faithful are the maps of `kg explain`? One reference of a prompt of two subjects is exchanged for another
subject, and the change of the image is compared with the maps that were made before.

Per reference: does the image change more in the top quarter of its map than outside (`inside`, and the `ratio` of the
mean changes), more in its region than by exchanging the other reference (`own`), and how does the map correlate with
the change over the image (`r`, with a t interval over prompts)? Beside the leave-one-out maps of `kg explain` stand
those by attention rollout, by cross-attention to the slots of the conditioning that a reference changes, and by the
gradient along a reference's features; controls are the map of another prompt (where subjects usually stand) and a
random map.

Prints a table, then one JSON line: python tests/bench/bench_explain.py [--num 48] [--model FOLDER] | tail -1
"""

from __future__ import annotations

import argparse
import json
import math
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy.special import stdtrit

from kgcli import engine
from kgcli.data.prompt import ImageRef, Prompt, encode, pad_sequences
from kgcli.evaluation.benchmarks.skills import draw_case
from kgcli.inference.denoise import denoise, seeded
from kgcli.inference.explain.maps import NUM_STEPS, _Recorder, explain, relative
from kgcli.inference.request import Request
from kgcli.model.layers import Attention
from kgcli.world.tables import SIZE

TASK, SEED, OTHER_SEED = "pair", 7, 8
LATENTS = 16  # across and down, of the small model; changes are averaged over cells as large as one
TOP = 0.75
WHITE = Image.new("RGB", (SIZE, SIZE), "white")


class Given:
    """An image in memory in place of a file."""

    def __init__(self, image, name):
        self.image, self.name, self.sha256 = image, name, name

    def load(self):
        return self.image


def request_of(model, case):
    parts = tuple(part if isinstance(part, str) else ImageRef(path="image.png") for part in case.parts)
    images = tuple(Given(image, f"{number}.png") for number, image in enumerate(case.images))
    return Request(prompt=Prompt(parts=parts), images=images, seed=case.seed, sampling=model.folder.cfg.generation)


def exchanged(request, index, image):
    images = tuple(Given(image, "x") if at == index else one for at, one in enumerate(request.images))
    return Request(prompt=request.prompt, images=images, seed=request.seed, sampling=request.sampling)


def pixels(model, request, recorder=None):
    pipe = model.pipeline
    embeds = pipe.encoder.encode_request(request)
    with recorder or _Recorder(pipe.decoder.unet, request.row):
        (image,) = denoise(pipe.sd, pipe.decoder, *embeds, seeded([request.seed]), request.sampling)
    return np.asarray(image, np.float32) / 255


def cells(values_YX):
    cell = len(values_YX) // LATENTS
    return values_YX.reshape(LATENTS, cell, LATENTS, cell).mean((1, 3))


# ---------------------------------------------------------------- other ways to make a map


@torch.no_grad()
def cross_attention(model, inputs, embeds_1Sd):
    """Attention of every latent to every slot, (S, H, W), averaged over layers, heads and steps."""
    unet, found = model.pipeline.decoder.unet, []

    def keep(module, args, kwargs, output):
        context = kwargs["encoder_hidden_states"]
        query, key = (module.head_to_batch_dim(to(x)) for to, x in ((module.to_q, args[0]), (module.to_k, context)))
        weights_PS = (query @ key.transpose(-1, -2) * module.scale).softmax(-1).mean(0)
        side = math.isqrt(len(weights_PS))
        maps_1SHW = weights_PS.T.reshape(1, -1, side, side)
        found.append(torch.nn.functional.interpolate(maps_1SHW, size=(LATENTS, LATENTS), mode="bilinear")[0])

    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers]
    for noisy, timestep in inputs:
        unet(noisy, timestep, encoder_hidden_states=embeds_1Sd)
    for handle in handles:
        handle.remove()
    return torch.stack(found).mean(0)


@contextmanager
def recorded_attention(found):
    """Keep the weights of every attention of KosmosG, (T, K), averaged over heads."""
    forward = Attention.forward

    def record(self, x_BTD, memory_BKD, *, key_mask_BK=None, causal=False):
        query, key = self._split(self.q_proj(x_BTD)), self._split(self.k_proj(memory_BKD))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if causal:
            scores = scores + torch.full(scores.shape[-2:], -math.inf).triu(1)
        found[self] = scores.softmax(-1).mean(1)[0]
        return forward(self, x_BTD, memory_BKD, key_mask_BK=key_mask_BK, causal=causal)

    Attention.forward = record
    try:
        yield
    finally:
        Attention.forward = forward


def rollout(model, request):
    """Attention rollout from the slots of the conditioning back to the references, (M, S)."""
    kosmosg, found = model.pipeline.model, {}
    with recorded_attention(found):
        model.pipeline.encoder.encode([request.prompt], [[one.load() for one in request.images]])
    sequence = encode(request.prompt.fragments, model.pipeline.tokenizer, kosmosg.cfg.resampler.num_queries)
    tokens_TT = torch.eye(len(sequence.token_ids))
    for layer in (*kosmosg.mllm.stack.layers, *kosmosg.aligner.encoder.reader.layers):
        tokens_TT = (found[layer.self_attention] @ tokens_TT + tokens_TT) / 2
    slots_ST = torch.zeros(kosmosg.cfg.aligner.num_queries, len(tokens_TT))
    for layer in kosmosg.aligner.encoder.writer.layers:
        slots_ST = (found[layer.self_attention] @ slots_ST + slots_ST) / 2
        slots_ST = (found[layer.cross_attention] @ tokens_TT + slots_ST) / 2
    of_images = torch.tensor(sequence.image_mask).nonzero()[:, 0].view(len(request.images), -1)
    return torch.stack([slots_ST[:, tokens].sum(1) for tokens in of_images])


def slot_changes(model, request):
    """How much every slot of the conditioning changes when a reference becomes white, (M, S)."""
    whole = model.pipeline.encoder.encode_request(request)[0]
    rows = [
        model.pipeline.encoder.encode_request(exchanged(request, at, WHITE))[0] for at in range(len(request.images))
    ]
    return torch.stack([(whole - row).norm(dim=-1)[0] for row in rows])


@torch.no_grad()
def gradient(model, request, inputs, step=1e-2):
    """Derivative of the prediction along a reference's features from white, by central differences, (M, H, W)."""
    pipe = model.pipeline
    images = [one.load() for one in request.images]
    features = torch.cat([pipe.encoder._features(image, "pad") for image in images])
    white = pipe.encoder._features(WHITE, "pad")[0]
    queries = pipe.model.cfg.resampler.num_queries
    tokens, mask, slots = pad_sequences([encode(request.prompt.fragments, pipe.tokenizer, queries)], 1)
    total = torch.zeros(len(images), LATENTS, LATENTS)
    for at in range(len(images)):
        along = torch.zeros_like(features)
        along[at] = features[at] - white
        rows = [pipe.model.encode(tokens, mask, slots, lambda x=features + sign * step * along: x) for sign in (1, -1)]
        for noisy, timestep in inputs:
            both = pipe.decoder.unet(
                noisy.expand(2, -1, -1, -1), timestep, encoder_hidden_states=torch.cat(rows)
            ).sample
            total[at] += ((both[0] - both[1]) / (2 * step)).square().mean(0).sqrt()
    return total


# ---------------------------------------------------------------- the measure


@torch.no_grad()
def measure_case(model, index):
    """The maps of a case by each method, (M, H, W), and the changes of the image, (M, H, W)."""
    request = request_of(model, draw_case(TASK, SEED, index))
    other = draw_case(TASK, OTHER_SEED, index)
    explanation = explain(model, request, words=False)
    recorder = _Recorder(model.pipeline.decoder.unet, request.row)
    before = pixels(model, request, recorder)
    changes = [
        cells(np.abs(pixels(model, exchanged(request, at, other.images[at])) - before).mean(-1)) for at in range(2)
    ]
    inputs = recorder.spread(NUM_STEPS)
    attention_SHW = cross_attention(model, inputs, model.pipeline.encoder.encode_request(request)[0])
    by_slots = lambda weights_MS: torch.einsum("ms,shw->mhw", weights_MS, attention_SHW).numpy()  # noqa: E731
    maps = {
        "leave one out": np.stack([cells(one) for one in explanation.maps_MYX]),
        "gradient": gradient(model, request, inputs).numpy(),
        "attention to changed slots": by_slots(slot_changes(model, request)),
        "attention rollout": by_slots(rollout(model, request)),
    }
    return maps, np.stack(changes)


def random_map(rng):
    noise = Image.fromarray(rng.integers(0, 256, (LATENTS, LATENTS), dtype=np.uint8))
    return np.asarray(noise.filter(ImageFilter.GaussianBlur(2)), np.float32) + 1


def scores_of(maps_MHW, changes_MHW):
    """Scores of one case, averaged over its references."""
    regions = relative(maps_MHW).argmax(0)
    rows = []
    for at, (one, change) in enumerate(zip(maps_MHW, changes_MHW, strict=True)):
        top, mine = one >= np.quantile(one, TOP), regions == at
        ratio = change[top].mean() / change[~top].mean()
        own = [change_of[mine].mean() / change_of.mean() for change_of in (change, changes_MHW[1 - at])]
        rows.append((ratio > 1, math.log(ratio), own[0] > own[1], np.corrcoef(one.ravel(), change.ravel())[0, 1]))
    return np.mean(rows, axis=0)


def t_interval(values):
    half = float(stdtrit(len(values) - 1, 0.975)) * np.std(values, ddof=1) / math.sqrt(len(values))
    return [round(float(np.mean(values) + sign * half), 3) for sign in (-1, 1)]


def summarise(cases, rng):
    methods = {name: [case[0][name] for case in cases] for name in cases[0][0]}
    ours = methods["leave one out"]
    methods["another prompt's map"] = [*ours[1:], ours[0]]
    methods["random map"] = [np.stack([random_map(rng), random_map(rng)]) for _ in cases]
    scores = {
        name: np.array([scores_of(one, changes) for one, (_, changes) in zip(maps, cases, strict=True)])
        for name, maps in methods.items()
    }
    rows = []
    for name, found in scores.items():
        inside, log_ratio, own, correlation = found.mean(axis=0)
        row = {"inside": inside, "ratio": math.exp(log_ratio), "own": own, "r": correlation}
        gain = found[:, 3] - scores["another prompt's map"][:, 3]
        rows.append(
            {
                "map": name,
                **{key: round(float(value), 3) for key, value in row.items()},
                "r_interval": t_interval(found[:, 3]),
                "r_over_another": t_interval(gain),  # paired, over prompts
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=48)
    parser.add_argument("--model", help="model folder; default: the one that ships")
    args = parser.parse_args()
    num, model = args.num, engine.load(args.model, device="cpu")
    cases = []
    for index in range(num):
        cases.append(measure_case(model, index))
        print(f"{index + 1} of {num}", end="\r", flush=True)
    rows = summarise(cases, np.random.default_rng(0))
    for row in rows:
        print(f"{row['map']:28} inside {row['inside']:.3f}  ratio {row['ratio']:5.2f}  own {row['own']:.3f}  "
              f"r {row['r']:.3f} {row['r_interval']}  r over another prompt's map {row['r_over_another']}")  # fmt: skip
    print(json.dumps({"theme": "explain", "torch": torch.__version__, "num": num, "task": TASK, "rows": rows}))


if __name__ == "__main__":
    main()
