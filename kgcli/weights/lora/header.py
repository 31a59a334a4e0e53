"""Headers of LoRA files: the layout, the role of each tensor, and the kinds that are refused.

Layouts: kohya's sd-scripts (`lora_unet_..._to_q.lora_down.weight`), LyCORIS (`hada_w1_a`, `lokr_w1`, `diff`, ...),
diffusers of any year (`unet.....lora_A.weight`, `...to_q_lora.down.weight`) and peft (`base_model.model....`, in a
folder with adapter_config.json). `unet_names` maps every tensor to a layer of the U-Net; none is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kgcli.errors import IncompatibleError, MissingError
from kgcli.weights.lora.scale import LoraScale
from kgcli.weights.lora.unet_names import layer_aliases, shapes_of_layers

LORA_NAME = "pytorch_lora_weights.safetensors"  # in a folder of diffusers
PEFT_NAME = "adapter_model.safetensors"  # in a folder of peft
PEFT_CONFIG = "adapter_config.json"
SHOWN_NAME = 60  # characters of a name in an error

_SUFFIXES = {  # end of a tensor's name -> its role
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.bias": "bias",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "w_norm",
    ".b_norm": "b_norm",
    **{f".hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
_REFUSED = {  # of LyCORIS, peft and others
    "GLoRA": r"\.[ab][12]\.weight$",
    "(IA)^3": r"\.on_input$|\.ia3_l",
    "OFT or BOFT": r"\.b?oft_|\.rescale$",
    "VeRA": r"vera_lambda|\.vera_",
    "LoRA of an embedding": r"\.lora_embedding_",
    "replaced weights": r"\.set_weight$|\.reshape_weight$",
}
_ADAPTER_NAME = re.compile(r"(\.(?:lora_[AB]|lora_magnitude_vector))\.(?!(?:weight|bias)$)[^.]+(?=\.weight$|\.bias$|$)")
_TEXT = re.compile(r"(lora|lycoris)_te\d*_|te\d?\.|text_encoder(_\d)?\.|text_model\.|cond_stage_model\.|conditioner\.")
_EMBEDDING = "bundle_emb."
_PREFIX = re.compile(r"(lora_unet[_.]|lycoris_(unet_)?|unet\.|(model\.)?diffusion_model\.)")
_FAMILIES = {  # of other models than Stable Diffusion v1
    "Flux": r"double_blocks|single_blocks|single_transformer_blocks",
    "Stable Diffusion 3": r"joint_blocks|context_block|attn\.add_[qkv]_proj",
    "a diffusion transformer": r"^((lora_)?transformer|lora_unet_blocks|lora_unet_layers|diffusion_model\.blocks)[._]",
    "Stable Cascade": r"^lora_prior_",
}
_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
_READS_TEXT = re.compile(r"attn2[._]to_[kv]$")  # its input is the conditioning


@dataclass(frozen=True)
class LoraPart:
    """One tensor of a LoRA file: its layer, as named in the file, and its role."""

    tensor: str
    layer: str
    role: str


@dataclass(frozen=True)
class LoraHeader:
    """The contents of a LoRA file, known without reading its weights."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    scale: LoraScale
    parts: tuple[LoraPart, ...]  # of the U-Net
    text: tuple[str, ...]  # tensors of a text encoder
    embeddings: tuple[str, ...]  # bundled textual inversion vectors

    def place(self, unet: Mapping[str, tuple[int, ...]]) -> LoraPlacement:
        """Find the layers of a U-Net, given the shapes of its parameters.

        Raises: IncompatibleError if none is found, or two tensors have the same role in one layer.
        """
        aliases, layers = layer_aliases(shapes_of_layers(unet)), shapes_of_layers(unet)
        placed: dict[str, dict[str, str]] = {}
        left: list[str] = []
        for part in self.parts:
            layer = aliases.get(part.layer)
            if layer is None:
                left.append(part.tensor)
            elif (before := placed.setdefault(layer, {}).setdefault(part.role, part.tensor)) != part.tensor:
                raise IncompatibleError(
                    f"the LoRA {shown(self.path.name)} is ambiguous: {shown(before)} and {shown(part.tensor)} are the "
                    "same part of one layer"
                )
        if not placed:
            raise IncompatibleError(
                f"the LoRA {shown(self.path.name)} does not fit this decoder: none of its {len(self.parts)} tensors "
                f"has a layer here (the first is {shown(self.parts[0].tensor)})"
            )
        return LoraPlacement(placed, {layer: layers[layer] for layer in placed}, tuple(left))

    @cached_property
    def text_width(self) -> int | None:
        """Width of the conditioning the LoRA was trained with, if a tensor shows it."""
        for part in self.parts:
            if _READS_TEXT.search(part.layer) and part.role in ("down", "hada_w1_b", "diff"):
                return self.shapes[part.tensor][1] if len(self.shapes[part.tensor]) > 1 else None
        return None

    def check_width(self, width: int) -> None:
        """Refuse a LoRA of another family. Raises: IncompatibleError."""
        found = self.text_width
        if found is not None and found != width:
            family = f" (that is {_WIDTHS[found]})" if found in _WIDTHS else ""
            raise IncompatibleError(
                f"the LoRA {shown(self.path.name)} does not fit this decoder: it is for one that attends to vectors of "
                f"width {found}{family}, this one's have {width}"
            )


@dataclass(frozen=True)
class LoraPlacement:
    """The mapping of a LoRA file's tensors to the layers of one U-Net."""

    layers: Mapping[str, Mapping[str, str]]  # layer -> role -> tensor
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]  # layer -> parameter -> shape
    left: tuple[str, ...]  # tensors without a layer here


def lora_file(path: Path) -> Path:
    """Return the weight file in a folder of diffusers or peft, or the path itself if it is not a folder.

    Raises: MissingError.
    """
    if not path.is_dir():
        return path
    for name in (LORA_NAME, PEFT_NAME):
        if (path / name).is_file():
            return path / name
    raise MissingError(f"there is no LoRA file in {path}: neither {LORA_NAME} nor {PEFT_NAME}")


def lora_files(file: Path) -> list[Path]:
    """Return all files of a LoRA: its weights, and peft's configuration if it is beside them."""
    config = file.with_name(PEFT_CONFIG)
    return [file, config] if file.name == PEFT_NAME and config.is_file() else [file]


def read_lora_header(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> LoraHeader:
    """Classify the tensors of a LoRA file, given their shapes.

    Raises:
        MissingError: the file cannot be read.
        IncompatibleError: it is of another family, of an unsupported kind, or not a LoRA.
    """
    # Names without peft's prefix and the adapter's own name.
    names = {tensor: _ADAPTER_NAME.sub(r"\1", tensor.removeprefix("base_model.model.")) for tensor in shapes}
    text = tuple(tensor for tensor, name in names.items() if _TEXT.match(name))
    embeddings = tuple(tensor for tensor, name in names.items() if name.startswith(_EMBEDDING))
    others = {tensor: name for tensor, name in names.items() if tensor not in {*text, *embeddings}}
    _check_family(file, others)
    parts = tuple(_part(file, name, tensor) for tensor, name in others.items())
    if not parts and text:
        raise IncompatibleError(
            f"the LoRA {shown(file.name)} only changes the text encoder, which KOSMOS-G replaces; nothing to apply"
        )
    if not parts:
        raise IncompatibleError(f"{shown(file.name)} is not a LoRA file: none of its {len(shapes)} tensors is known")
    config = lora_files(file)[1:]
    scale = LoraScale.read(file, config[0] if config else None)
    if scale.uses_dora and not any(part.role in ("magnitude", "dora_scale") for part in parts):
        raise IncompatibleError(
            f"the LoRA {shown(file.name)} is a DoRA by its header but has no magnitudes; save it again"
        )
    return LoraHeader(file, dict(shapes), scale, parts, text, embeddings)


def shown(name: str) -> str:
    """Return a printable name, shortened in the middle if it is long."""
    printable = "".join(character if character.isprintable() else "?" for character in name)
    half = SHOWN_NAME // 2
    return printable if len(printable) <= SHOWN_NAME else f"{printable[:half]}...{printable[-half:]}"


def _check_family(file: Path, names: Mapping[str, str]) -> None:
    """Raises: IncompatibleError."""
    for family, pattern in _FAMILIES.items():
        if any(re.search(pattern, name) for name in names.values()):
            raise IncompatibleError(
                f"{shown(file.name)} is a LoRA for {family}, not for a Stable Diffusion v1 decoder; choose another one"
            )


def _part(file: Path, name: str, tensor: str) -> LoraPart:
    """Raises: IncompatibleError for an unsupported kind."""
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return LoraPart(tensor, _layer(name.removesuffix(suffix)), _SUFFIXES[suffix])
    kinds = [kind for kind, pattern in _REFUSED.items() if re.search(pattern, name)]
    if kinds:
        raise IncompatibleError(
            f"the LoRA {shown(file.name)} is of the kind {kinds[0]}, which is not supported (tensor {shown(tensor)}); "
            "supported are LoRA, LoCon, DoRA, LoHa, LoKr and full differences"
        )
    raise IncompatibleError(
        f"{shown(file.name)} is not a LoRA file that can be applied: its tensor {shown(tensor)} is of an unknown kind"
    )


def _layer(name: str) -> str:
    """Return the layer without the file's prefix, as one of the names of `layer_aliases`."""
    if match := _PREFIX.match(name):
        name = name[match.end() :]
    # diffusers of 2023: attn1.processor.to_q_lora, attn1.processor.to_out_lora
    name = name.replace(".processor.", ".").removesuffix("_lora").removesuffix(".lora")
    return f"{name}.0" if name.endswith(".to_out") else name
