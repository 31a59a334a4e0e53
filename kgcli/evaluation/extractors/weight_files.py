"""The weight files that scoring needs: their locations and hashes.

A file is looked for in the folder of `--weights`, then in `cache_folder()`; all are found before anything is generated.
"""

from __future__ import annotations

import os
import shutil
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kgcli.errors import IncompatibleError, MissingError, OutputError
from kgcli.files import make_folder, sha256, whole_file
from kgcli.runtime import is_offline, user_cache

VARIABLE = "KG_WEIGHTS"  # a folder used in place of the cache
CHUNK = 2**20  # bytes
TIMEOUT = 30  # seconds without an answer


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """One published file."""

    file: str
    url: str
    sha256: str  # empty if not published
    use: str


@dataclass(frozen=True)
class Weights:
    """A file that was found and checked."""

    path: Path
    sha256: str  # of its bytes, in hex


# Sources of the hashes: CLIP's is part of its address (open_clip/pretrained.py); torch-fidelity's file name holds the
# first eight digits of its own; k-diffusion's evaluation.py states that of the TorchScript Inception.
TABLE = {
    "dino": WeightFile(
        file="dino_deitsmall16_pretrain.pth",
        url="https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
        sha256="",
        use="DINO scores",
    ),
    "clip": WeightFile(
        file="ViT-B-32.pt",
        url="https://openaipublic.azureedge.net/clip/models/"
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        use="CLIP scores",
    ),
    "dinov2": WeightFile(
        file="dinov2_vits14_pretrain.pth",
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
        sha256="",
        use="DINOv2 scores",
    ),
    "dinov2-large": WeightFile(
        file="dinov2_vitl14_pretrain.pth",
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        sha256="",
        use="FD-DINOv2",
    ),
    "inception": WeightFile(
        file="weights-inception-2015-12-05-6726825d.pth",
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        use="FID of the presets kosmosg, kosmosg-rescore and legacy256",
    ),
    "inception-clean": WeightFile(
        file="inception-2015-12-05.pt",
        url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
        sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        use="FID of the preset clean",
    ),
}


def cache_folder() -> Path:
    """Return the folder of weight files: $KG_WEIGHTS, or weights in the user's cache."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    return user_cache() / "weights"


def resolve(name: str, folder: Path | None = None, *, offline: bool = False) -> Weights:
    """Find one file of `TABLE`. Raises: as `resolve_all`."""
    return resolve_all([name], folder, offline=offline)[name]


def resolve_all(names: Sequence[str], folder: Path | None = None, *, offline: bool = False) -> dict[str, Weights]:
    """Find files of `TABLE`; download missing ones into the cache unless offline.

    Raises: MissingError that lists every missing file with its URL and destination; IncompatibleError if a file has
    another hash.
    """
    if folder is not None and not folder.is_dir():
        raise MissingError(f"--weights {folder} is not a folder; give the folder that holds the weight files")
    places = [cache_folder()] if folder is None else [folder, cache_folder()]
    found = {name: _look(TABLE[name], places) for name in dict.fromkeys(names)}
    missing = [TABLE[name] for name, weights in found.items() if weights is None]
    offline = is_offline(offline)
    if missing and offline:
        raise MissingError(_what_to_do(missing, places[0], "and nothing is downloaded offline"))
    for wanted in missing:
        _fetch(wanted, cache_folder())
    complete = {name: weights or _look(TABLE[name], places) for name, weights in found.items()}
    return {name: weights for name, weights in complete.items() if weights is not None}


def _look(wanted: WeightFile, places: Sequence[Path]) -> Weights | None:
    for place in places:
        path = place / wanted.file
        if path.is_file():
            digest = sha256(path)
            if wanted.sha256 and digest != wanted.sha256:
                raise IncompatibleError(
                    f"{path} is not the published file (sha256 {digest[:16]}..., expected {wanted.sha256[:16]}...): "
                    f"delete it and get it again from {wanted.url}"
                )
            return Weights(path, digest)
    return None


def _what_to_do(missing: Sequence[WeightFile], place: Path, why: str) -> str:
    files = "; ".join(
        f"{one.file} for {one.use} from {one.url} (sha256 {one.sha256 or 'not published'})" for one in missing
    )
    return f"weights are missing {why}: put into {place}, or into a folder given by --weights: {files}"


def _fetch(wanted: WeightFile, place: Path) -> None:
    """Download a file into the cache, atomically."""
    try:
        make_folder(place)
        with whole_file(place / wanted.file) as partial:
            _download(wanted, partial)
            digest = sha256(partial)
            if wanted.sha256 and digest != wanted.sha256:
                raise IncompatibleError(f"{wanted.url} returned a file other than the published one (sha256 {digest})")
    except OutputError as error:
        raise MissingError(_what_to_do([wanted], place, f"and could not be kept ({error})")) from None


def _download(wanted: WeightFile, path: Path) -> None:
    """Download a file. Raises: MissingError."""
    try:
        with path.open("wb") as file, urllib.request.urlopen(wanted.url, timeout=TIMEOUT) as answer:
            shutil.copyfileobj(answer, file, CHUNK)
            promised = answer.headers.get("Content-Length")
            if promised is not None and file.tell() != int(promised):  # read() may end early without an error
                raise OSError(f"the answer ended after {file.tell():,} of {int(promised):,} bytes")
    except OSError as error:
        raise MissingError(_what_to_do([wanted], cache_folder(), f"and could not be downloaded ({error})")) from None
