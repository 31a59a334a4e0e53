"""How well the evaluators tell individuals apart: python tests/bench/bench_evaluators.py [FOLDER]

One individual is shown in two scenes, each with candidates: the right one in a third scene, and nine others there.
"""

import argparse
from pathlib import Path

import numpy as np

from kgcli.data.sources.world_sample import BASE_NOUNS
from kgcli.evaluation.benchmarks.nano_world import find_weights
from kgcli.evaluation.extractors.nano import nano_extractors
from kgcli.model.nano_recognisers import Recognisers
from kgcli.world.rendering import render
from kgcli.world.spec import NUM_VARIANTS, Spec, Subject, place
from kgcli.world.tables import FIRST_NEW_IDENTITY, SCENES
from kgcli.world.text import describe
from kgcli.world.view import view

NUM_OTHERS = 9
FIRST = FIRST_NEW_IDENTITY + FIRST_NEW_IDENTITY // 2


def draw(rng, noun=None, colour=None):
    while True:
        subject = Subject(noun or str(rng.choice(BASE_NOUNS)), FIRST + int(rng.integers(FIRST_NEW_IDENTITY // 2)))
        if colour in (None, subject.look.colour_name):
            return subject


def photo(subject, rng, scene=None):
    scene = scene or str(rng.choice(list(SCENES)))
    return render(Spec(place([subject], rng), scene, "photo", int(rng.integers(NUM_VARIANTS)))).image


def candidates(subject, kind, rng):
    noun = subject.noun if kind in ("same noun", "same noun and colour") else None
    colour = subject.look.colour_name if kind in ("same colour", "same noun and colour") else None
    return [subject, *(draw(rng, noun, colour) for _ in range(NUM_OTHERS))]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--num", type=int, default=60)
    args = parser.parse_args()
    weights = find_weights(args.folder)
    extractors = nano_extractors(weights.evaluators)
    judges = Recognisers.load(weights.judges)
    embed = {"dino": extractors.dino.images, "clip": extractors.clip.images}
    embed["judge"] = lambda images: judges.embed([view(image) for image in images])
    rng = np.random.default_rng(31)
    for kind in ("any", "same colour", "same noun", "same noun and colour"):
        hits, cosines = {name: [] for name in embed}, {name: [] for name in embed}
        for _ in range(args.num):
            subject = draw(rng)
            scenes = [str(scene) for scene in rng.permutation(list(SCENES))[:2]]
            asked = photo(subject, rng, scenes[0])
            shown = [photo(one, rng, scenes[1]) for one in candidates(subject, kind, rng)]
            for name, run in embed.items():
                vectors = run([asked, *shown])
                like = vectors[1:] @ vectors[0]
                hits[name].append(like.argmax() == 0)
                cosines[name].append((like[0], like[1:].mean()))
        for name in embed:
            same, other = np.mean(cosines[name], axis=0)
            print(f"{kind:22} {name:6} nearest of 10: {np.mean(hits[name]):.2f}  same {same:.3f} other {other:.3f}")
    words, pictures = [], []
    for _ in range(args.num):
        subject, scene = draw(rng), str(rng.choice(list(SCENES)))
        pictures.append(photo(subject, rng, scene))
        words.append(f"{describe(subject, colours=True)} {SCENES[scene]}")
    like = extractors.clip.images(pictures) @ extractors.clip.texts(words).T
    right = (like.argmax(axis=1) == np.arange(len(like))).mean()
    off = (like.sum() - np.trace(like)) / (like.size - len(like))
    print(f"caption of {len(like)}: {right:.2f}  right {np.trace(like) / len(like):.3f} other {off:.3f}")


if __name__ == "__main__":
    main()
