"""Models of stages: found as folders or Hub ids, hashed, loaded from their folder alone and without code of others."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from kgcli.construction.stage import NotTaken
from kgcli.errors import IncompatibleError, MissingError
from kgcli.files import check_inside, sha256
from kgcli.reading import read_json
from kgcli.weights.hub import HubError, is_hub_id, snapshot

WEIGHTS = (".safetensors", ".bin")
# No *.py: nothing of a repository is run. Pickled weights only where there are no others.
FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
PICKLED = ("*.json", "*.txt", "*.model", "*.jinja", "*.bin")
# What libraries raise for files that are damaged or of another model.
_DAMAGE = (
    *(OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError),
    *(pickle.UnpicklingError, SafetensorError),
)


def find_model(name: str, *, offline: bool = False) -> Path:
    """Return the folder of a model given as a folder or a Hub id.

    Raises: MissingError with the remedy.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(name):
        raise MissingError(f"there is no model folder {name}")
    try:
        found = snapshot(name, files=FILES, offline=offline)
        if not _weight_files(found):
            found = snapshot(name, files=PICKLED, offline=offline)
    except HubError as error:
        raise MissingError(
            f"the model {name} is not a folder and could not be downloaded ({error}): copy "
            f"https://huggingface.co/{name} into a folder and name that, or run once online"
        ) from None
    return found


def hash_model(folder: Path) -> str:
    """Return a sha256 over a model's weights and settings. Raises: MissingError for a folder without weights."""
    weights = _weight_files(folder)
    if not weights:
        raise MissingError(f"{folder} holds no weights ({' or '.join(WEIGHTS)})")
    settings = [path for path in sorted(folder.glob("*.json")) if path.is_file()]
    digest = hashlib.sha256()
    for path in [*settings, *weights]:
        digest.update(f"{path.name}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


def load_part(load: Callable[..., Any], folder: str, **settings: Any) -> Any:
    """Return what a `from_pretrained` gives for a folder. Raises: IncompatibleError in one line."""
    try:
        return load(folder, local_files_only=True, **settings)
    except _DAMAGE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise IncompatibleError(f"the model {folder} cannot be used: {reason}") from None


def load_model(
    load: Callable[..., Any], folder: str, device: str, *, kinds: tuple[str, ...] = (), **settings: Any
) -> Any:
    """Return a model ready to compute.

    Args:
        kinds: model types that the class loads; without them it finds out itself
        settings: of its `from_pretrained`

    Raises: IncompatibleError, also where weights are missing.
    """
    if kinds and (kind := _kind_of(Path(folder))) not in kinds:  # of the size of the class's default, else
        raise IncompatibleError(f"the model {folder} is of type {kind}; it must be {' or '.join(kinds)}")
    model, loaded = load_part(load, folder, output_loading_info=True, **settings)
    if absent := sorted(loaded["missing_keys"]):
        what = f"{folder} is not a complete {type(model).__name__}"
        raise IncompatibleError(f"{what}: {len(absent)} weights are missing, the first is {absent[0]}")
    return model.eval().requires_grad_(False).to(device)


def process(processor: Callable[..., Any], **sample: Any) -> Any:
    """Return the tensors that a model's processor makes of a sample. Raises: NotTaken where it refuses the sample."""
    try:
        return processor(**sample, return_tensors="pt")
    except ValueError as error:  # as processors refuse images of odd sizes
        raise NotTaken(" ".join(str(error).split())[:200]) from None


class JsonGrammar:
    """JSON schemas that bind a model's answers, by xgrammar.

    Args:
        tokenizer: of the model
        vocab_size: number of tokens that it gives logits for
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
        self._compiler = xgrammar.GrammarCompiler(info)

    @staticmethod
    def is_installed() -> bool:
        """Tell whether xgrammar is installed."""
        return importlib.util.find_spec("xgrammar") is not None

    def processor(self, schema: dict[str, Any]) -> Any:
        """Return a processor of logits that binds one answer to a schema."""
        from xgrammar.contrib.hf import LogitsProcessor

        # Blanks between the parts would let a weak model write blanks for ever.
        return LogitsProcessor(self._compiler.compile_json_schema(json.dumps(schema), any_whitespace=False))


def _kind_of(folder: Path) -> str:
    value = read_json(folder / "config.json", error=IncompatibleError)
    return str(value.get("model_type")) if isinstance(value, dict) else "unknown"


def _weight_files(folder: Path) -> list[Path]:
    found = [path for suffix in WEIGHTS for path in sorted(folder.glob(f"*{suffix}"))]
    safe = [path for path in found if path.suffix == WEIGHTS[0]] or found
    if not _is_of_hub(folder):  # whose files are links into its store
        check_inside(folder, [path.name for path in safe])
    return safe


def _is_of_hub(folder: Path) -> bool:
    return folder.parent.name == "snapshots"
