"""`kg convert`: conversion of a published checkpoint to a model folder and back, atomic and in little memory."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from kgcli.config import CONFIG_NAME, ModelConfig, SpecialIds
from kgcli.data.tokenizer import DICTIONARY_NAME, MODEL_NAMES, SPECIAL_ORDER, Tokenizer
from kgcli.errors import IncompatibleError, MissingError, OutputError, UsageError
from kgcli.files import PARTIAL, make_folder, whole_file, whole_folder
from kgcli.weights.config import read_model_config, read_model_config_file
from kgcli.weights.folder import RENAMED_REPOSITORIES, TOKENIZER_NAME, WEIGHTS_NAME, check_target
from kgcli.weights.published import names
from kgcli.weights.published.card import CARD_NAME, model_card
from kgcli.weights.published.checkpoint import (
    NUM_NAMED,
    PRETRAIN,
    Source,
    expected_weights,
    open_source,
    stage_of,
)
from kgcli.weights.published.fairseq import checkpoint_content
from kgcli.weights.published.kosmos2 import open_kosmos2
from kgcli.weights.published.record import write_record
from kgcli.weights.safetensors import DTYPES, check_weights, read_weights, write_shards
from kgcli.weights.tensor_files import save_state

SHORT_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SHARD_SIZE = 10**9  # bytes; the memory that a conversion needs
DECODER_NAME = "decoder"  # of a copied decoder, inside the model folder
DECODER_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
DECODER_SUFFIXES = (".json", ".txt", ".model", ".safetensors")

_log = logging.getLogger(__name__)


def open_checked(
    checkpoint: Path, out: Path, *, clip: Path | None = None, config: Path | None = None, overwrite: bool = False
) -> Source:
    """Open and check a checkpoint, after checking that its model folder may be written.

    Raises: as `open_source`; UsageError about `out`.
    """
    check_target(out, [checkpoint], overwrite=overwrite)
    if (checkpoint / CONFIG_NAME).is_file():
        if clip is not None or config is not None:
            raise UsageError(f"{checkpoint} is a complete folder; omit --clip and --config")
        return open_kosmos2(checkpoint)
    return open_source(checkpoint, clip=clip, cfg=None if config is None else read_model_config_file(config))


def to_folder(
    source: Source,
    out: Path,
    *,
    dictionary: Path | None = None,
    sentencepiece: Path | None = None,
    decoder: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    shard_size: int = SHARD_SIZE,
    origin: Mapping[str, str] | None = None,
) -> int:
    """Write a model folder of a checkpoint; returns the number of weight files.

    `origin` is stored in the folder's record: the repository, revision and sha256 of the checkpoint, if known.

    Raises: UsageError, MissingError, IncompatibleError; KgError where it cannot be written.
    """
    target = find_dtype(dtype)
    sentencepiece = sentencepiece or source.sentencepiece
    origin = {"file": source.path.name, "stage": source.stage} | dict(origin or {})
    named, own = _find_decoder(decoder or source.cfg.decoder)
    kinds = {name: target or kind for name, kind in source.dtypes.items()}
    num_bytes = {name: source.shapes[name].numel() * kind.itemsize for name, kind in kinds.items()}
    cfg = source.cfg.model_copy(
        update={
            "special_ids": _special_ids(source.cfg, dictionary, sentencepiece),
            "decoder": named,
        }
    )
    out = check_target(out, [source.path], overwrite=overwrite)
    with _whole_folder(out, sum(num_bytes.values())) as partial:
        num_files = write_shards(partial / WEIGHTS_NAME, num_bytes, source.read, shard_size=shard_size, dtype=target)
        _copy_tokenizer(partial / TOKENIZER_NAME, dictionary, sentencepiece)
        if own is not None:
            _copy_decoder(own, partial / named)
        (partial / CONFIG_NAME).write_text(cfg.model_dump_json(indent=2) + "\n", "utf-8")
        card = model_card(
            out.name,
            "/".join(origin[key] for key in ("repository", "file") if key in origin),
            source.stage,
            num_parameters=sum(shape.numel() for shape in source.shapes.values()),
            dtypes={str(kind).removeprefix("torch.") for kind in kinds.values()},
            decoder=cfg.decoder,
            has_aligner=source.stage != PRETRAIN,
            licence=origin.get("licence", "MIT"),
        )
        (partial / CARD_NAME).write_text(card, "utf-8")
        write_record(partial, origin)
    if sentencepiece is None:
        _log.warning("%s has no tokenizer, so it cannot generate yet; add the published one with --dict and --spm", out)
    return num_files


def to_published(folder: Path, out: Path, *, dtype: str | None = None, overwrite: bool = False) -> str:
    """Write a model folder's weights as the published code's loader expects them; returns their stage.

    Raises: UsageError, MissingError, IncompatibleError; KgError where it cannot be written.
    """
    target = find_dtype(dtype)
    cfg = read_model_config(folder)
    if out.is_dir() or (out.exists() and not overwrite):
        raise UsageError(f"{out} already exists; give another name" + ("" if out.is_dir() else " or --overwrite"))
    weights = read_weights(folder / WEIGHTS_NAME, dtype=target)
    stage = stage_of(weights)
    expected = {name: tensor.shape for name, tensor in expected_weights(cfg, stage).items()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    check_weights(expected, found, source=str(folder), num_named=NUM_NAMED)
    state = names.to_published(weights)
    state |= names.published_buffers(cfg.mllm.width // cfg.mllm.num_heads, state[names.EMBEDDING].dtype)
    make_folder(out.parent)
    with whole_file(out, overwrite=overwrite) as partial:
        save_state(partial, checkpoint_content(state, cfg))
    return stage


def find_dtype(name: str | None) -> torch.dtype | None:
    """Return the dtype of a name; None keeps that of the file.

    Raises: UsageError.
    """
    known = DTYPES | SHORT_DTYPES
    if name is not None and name not in known:
        raise UsageError(f"--dtype is {name}; it must be one of {', '.join(known)}")
    return None if name is None else known[name]


def _special_ids(cfg: ModelConfig, dictionary: Path | None, sentencepiece: Path | None) -> SpecialIds:
    """Return the tokenizer's special ids, or without one the last ids, as in the published vocabulary."""
    if sentencepiece is None:
        if dictionary is not None:
            raise UsageError("--dict alone is not a tokenizer; give the SentencePiece model as well (--spm)")
        first = cfg.mllm.vocab_size - len(SPECIAL_ORDER)
        return SpecialIds(**{name: first + index for index, name in enumerate(SPECIAL_ORDER)})
    tokenizer = Tokenizer.read(sentencepiece, dictionary)
    if tokenizer.vocab_size != cfg.mllm.vocab_size:
        raise IncompatibleError(
            f"{sentencepiece} gives {tokenizer.vocab_size} ids, the checkpoint has {cfg.mllm.vocab_size}; "
            "give the dict.txt and the SentencePiece model it was trained with"
        )
    return tokenizer.special_ids


def _copy_tokenizer(folder: Path, dictionary: Path | None, sentencepiece: Path | None) -> None:
    for path, name in ((sentencepiece, MODEL_NAMES[0]), (dictionary, DICTIONARY_NAME)):
        if path is not None:
            folder.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)


def _find_decoder(decoder: str) -> tuple[str, Path | None]:
    """Return the decoder's name for config.json (a name inside the folder, or a Hub id), and the folder to copy.

    A path of this machine is not written to a folder that may be shared.

    Raises: MissingError.
    """
    folder = Path(decoder).expanduser()
    if folder.is_dir():
        return DECODER_NAME, folder
    if decoder.startswith((".", "~", "/")) or decoder.count("/") != 1:
        raise MissingError(f"there is no decoder folder {decoder}; give a diffusers folder or a Hub id")
    return RENAMED_REPOSITORIES.get(decoder, decoder), None


def _copy_decoder(source: Path, target: Path) -> None:
    """Copy the parts of a diffusers folder that are used, as hard links if the file system supports them."""
    for path in sorted(source.glob("*.json")) + [
        path for part in DECODER_PARTS for path in sorted((source / part).rglob("*")) if path.is_file()
    ]:
        if path.suffix in DECODER_SUFFIXES:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path.resolve(), copy)
            except OSError:  # another disk, or no hard links
                shutil.copyfile(path, copy)


@contextmanager
def _whole_folder(out: Path, num_bytes: int) -> Iterator[Path]:
    """Yield a temporary folder that replaces `out` once it is complete. Raises: OutputError."""
    for left in out.parent.glob(f".{out.name}.*{PARTIAL}"):
        _log.warning("%s was left by an interrupted conversion, unless another is running; remove it", left)
    with whole_folder(out, overwrite=True) as partial:
        free = shutil.disk_usage(partial).free
        if free < num_bytes:
            raise OutputError(f"{out} needs {num_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there")
        yield partial
