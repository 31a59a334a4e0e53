"""The setup of a dry run: parts on the meta device, their files checked, absent ones of the recipe's sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from kgcli.config import AlignerConfig, ModelConfig
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import MissingError
from kgcli.model.diffusion import Diffusion
from kgcli.model.kosmosg import KosmosG
from kgcli.model.vision import VisionTower
from kgcli.training.stages.base import Setup, Stage
from kgcli.training.stages.start import NotFetchedError
from kgcli.weights.decoder import shape_decoder
from kgcli.weights.load import load_kosmosg, load_tower
from kgcli.weights.meta import on_meta
from kgcli.weights.safetensors import assign_weights
from kgcli.weights.shipped import SD15_SIZES

# The text encoder of Stable Diffusion v1.5, for one that is not on this machine.
TEXT_SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


class AbsentTokenizer(Tokenizer):
    """The size of a tokenizer that is not on this machine; it encodes nothing."""

    def __init__(self, cfg: ModelConfig) -> None:
        self.special_ids = cfg.special_ids
        self.vocab_size = cfg.mllm.vocab_size


@dataclass(frozen=True)
class ShapeSetup(Setup):
    """A setup that loads shapes alone. Parts that are not on this machine are noted and take the recipe's sizes."""

    missing: dict[str, str] = field(default_factory=dict)  # part -> what a run would say
    to_fetch: dict[str, str] = field(default_factory=dict)  # part -> what a run fetches from the Hub

    def build(self, kind: type[Stage]) -> Stage:
        """Return a stage on the meta device."""
        with on_meta():
            return kind(self)

    def source(self, part: str) -> Path:
        if part in self.init_from and part not in self.found:
            try:
                self.found[part] = self.find(part, fetch=False)
            except NotFetchedError as error:
                self.to_fetch[part] = str(error)
                raise
            except MissingError as error:
                self.missing[part] = str(error)
                raise
        return super().source(part)

    def has(self, part: str) -> bool:
        """Return whether the folder of a part is on this machine. Raises: ConfigError where none is named."""
        try:
            self.source(part)
        except MissingError:
            return False
        return True

    def model_config(self) -> ModelConfig:
        return super().model_config() if self.has("model") else self.model

    def load_model(self, *, with_aligner_decoder: bool = False, aligner: AlignerConfig | None = None) -> KosmosG:
        if self.has("model"):
            return super().load_model(with_aligner_decoder=with_aligner_decoder, aligner=aligner)
        cfg = self.model if aligner is None else self.model.model_copy(update={"aligner": aligner})
        with on_meta():
            return KosmosG(cfg, with_aligner_decoder=with_aligner_decoder)

    def load_folder(self, folder: Path, **options: Any) -> KosmosG:
        return load_kosmosg(folder, device="meta", **options)

    def load_tokenizer(self, find: Callable[[], Path]) -> Tokenizer:
        try:
            folder = find()
        except MissingError:
            return AbsentTokenizer(self.model)
        return Tokenizer.load(folder)

    def load_decoder(self) -> Diffusion:
        return shape_decoder(self.source("decoder") if self.has("decoder") else SD15_SIZES)

    def load_text(self, part: str = "text") -> tuple[CLIPTokenizer | None, CLIPTextModel]:
        if not self.has(part):
            with on_meta():
                return None, CLIPTextModel(CLIPTextConfig(**TEXT_SIZES))
        folder = self.text_folder(part)
        with on_meta():
            text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
        return CLIPTokenizer.from_pretrained(folder / "tokenizer"), text

    def load_tower(self, tower: VisionTower) -> None:
        if self.has("clip"):
            folder = self.source("clip")
            assign_weights(tower, load_tower(folder, self.model.vision, device="meta"), source=str(folder))
