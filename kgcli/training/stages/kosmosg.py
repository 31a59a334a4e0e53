"""What each training stage builds, trains, minimises, shows and hands on: where data meets model.

A stage is one class and an entry of `stages_table.STAGES`; all of them run through `train.train`. The three here are
the paper's; those of `stages_base` make the nano base they start from.
"""

from __future__ import annotations

import difflib
import logging
import shutil
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from kgcli.config import ALIGNER, AlignerConfig, ModelConfig, Recipe, explain, read_model_config
from kgcli.data.batch import Batch, Collator, Pool
from kgcli.data.tokenizer import DICTIONARY_NAME, MODEL_NAMES, Tokenizer
from kgcli.errors import ConfigError, MissingError
from kgcli.model.kosmosg import KosmosG
from kgcli.model.randomness import StepRandom
from kgcli.training.preview import preview_pictures
from kgcli.weights.catalogue import is_entry, local_model
from kgcli.weights.decoder import load_decoder
from kgcli.weights.hub import HubError, is_hub_id, snapshot
from kgcli.weights.load import has_aligner, load_kosmosg, load_tower, save_kosmosg
from kgcli.weights.safetensors import assign_weights

DROP_CONDITION = 0.1  # share of rows whose conditioning becomes the null one. Source: the published instruct stage
TOKENIZER = "tokenizer"  # folders inside a model folder
DECODER = "decoder"
HUB_FILES = {  # part -> what is read of a Hub repository that it starts from
    "clip": ("config.json", "model*.safetensors", "model.safetensors.index.json"),
    "tokenizer": ("sentencepiece.model", "sentencepiece.bpe.model", "dict.txt"),
    "text": ("tokenizer/*", "text_encoder/config.json", "text_encoder/model.safetensors"),
    "decoder": (
        "*.json",
        "*/*.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ),
}

_log = logging.getLogger(__name__)


class Stage(nn.Module):
    """A trainable whole: its modules, its loss, its preview and its result."""

    needs: ClassVar[frozenset[str]]  # fields of Batch
    trains: tuple[str, ...]  # prefixes of parameter names; all else is frozen
    options: ClassVar[frozenset[str]] = frozenset()  # names of the recipe's own numbers
    uses_pool: ClassVar[bool] = False

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self._sources: dict[str, Path] = {}  # what was found is asked of the Hub once, not again days later
        for name in recipe.options.keys() - self.options:
            near = difflib.get_close_matches(name, self.options, 1, 0.5)
            raise ConfigError(f"unknown key options.{name}" + (f"; did you mean {near[0]}?" if near else ""))

    @abstractmethod
    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        """Named losses, each a mean over the batch; their sum is minimised."""

    @abstractmethod
    def collator(self, pool: Pool | None) -> Collator:
        """What turns samples into this stage's batches."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the result that the next stage or the user loads."""

    def preview(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """Pictures in [0, 1], (N, 3, X, Y), that show how far the stage is; None where there is nothing to see."""
        return None

    def heavy_parts(self) -> list[nn.Module]:
        """The modules worth compiling."""
        return []

    def freeze(self) -> None:
        """Let only the parameters under `trains` train."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(self.trains))

    def option(self, name: str, default: float) -> float:
        """One of the recipe's own numbers."""
        assert name in self.options, name
        return self.recipe.options.get(name, default)

    def part(self, name: str) -> dict[str, Any]:
        """The library configuration of a part that the stage builds.

        Raises:
            ConfigError: the recipe does not have it.
        """
        if name not in self.recipe.parts:
            raise ConfigError(f"stage {self.recipe.stage} needs parts.{name}: the configuration of its {name}")
        return self.recipe.parts[name]

    def source(self, part: str) -> Path:
        """The folder that `part` starts from: a path, the name of a pulled model, or of some parts a Hub id.

        Raises:
            ConfigError, MissingError: the recipe does not name it, or it is not there.
        """
        if part not in self.recipe.init_from:
            raise ConfigError(f"stage {self.recipe.stage} needs init_from.{part}: the folder its {part} starts from")
        if part not in self._sources:
            self._sources[part] = self._find_source(part, self.recipe.init_from[part])
        return self._sources[part]

    def _find_source(self, part: str, named: str) -> Path:
        if Path(named).is_dir():
            return Path(named)
        if (pulled := local_model(named)) is not None:
            return pulled
        if is_entry(named):
            raise MissingError(f"init_from.{part}: {named} is not on this machine; `kg models pull {named}` fetches it")
        missing = f"init_from.{part}: there is no folder {named}; run the stage that makes it first"
        if part not in HUB_FILES or not is_hub_id(named):
            raise MissingError(missing)
        try:
            return snapshot(named, files=HUB_FILES[part])
        except HubError as error:
            raise MissingError(f"{missing} ({error})") from None


class KosmosGStage(Stage):
    """What the paper's three stages share: a KosmosG, its tokenizer, and a model folder as result."""

    model: KosmosG
    tokenizer: Tokenizer

    def other_aligner(self, folder: Path) -> AlignerConfig | None:
        """What AlignerNet becomes where the recipe has `parts.aligner`: the folder's sizes with those it names.

        Raises:
            ConfigError: a key or a value is none of AlignerNet's.
        """
        if "aligner" not in self.recipe.parts:
            return None
        sizes = read_model_config(folder).aligner.model_dump() | self.recipe.parts["aligner"]
        try:
            return AlignerConfig.model_validate(sizes)
        except ValidationError as error:
            raise ConfigError(f"parts.aligner: {explain(error, AlignerConfig)}") from None

    def trained_reader(self) -> tuple[str, ...]:
        """What pretrain and instruct train of the reader: MLLM, resampler and the last blocks of the vision tower.

        Option: vision_blocks (how many blocks; the published model trains one, as do the defaults; all of them means
        the whole tower).
        """
        last = len(self.model.vision.blocks)
        first = last - int(self.option("vision_blocks", 1))
        if first <= 0:
            return ("model.mllm.", "model.resampler.", "model.vision.")
        blocks = tuple(f"model.vision.blocks.{number}." for number in range(first, last))
        return ("model.mllm.", "model.resampler.", "model.vision.final_norm.", *blocks)

    def collator(self, pool: Pool | None) -> Collator:
        cfg = self.model.cfg
        return Collator(
            self.needs,
            self.recipe.image_size,
            cfg.vision.image_size,
            vision_fit="stretch" if cfg.image_fit == "stretch" else "crop",  # the published model trains on crops
            num_slots=cfg.resampler.num_queries,
            tokenizer=self.tokenizer,
            pool=pool,
        )

    def export(self, folder: Path) -> None:
        save_kosmosg(self.model, folder)
        copy_folder(self.source("model") / TOKENIZER, folder / TOKENIZER)


class PretrainStage(KosmosGStage):
    """Stage 1: next-token prediction over text, caption pairs and interleaved documents.

    Only text is predicted; image slots and their brackets never are. Source: KOSMOS-G (arXiv:2310.02992), section 2.1.
    """

    needs = frozenset({"tokens", "images"})
    options = frozenset({"vision_blocks"})

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.tokenizer = Tokenizer.load(self.tokenizer_folder())
        sizes = recipe.model.mllm.model_copy(update={"vocab_size": self.tokenizer.vocab_size})
        cfg = recipe.model.model_copy(update={"mllm": sizes, "special_ids": self.tokenizer.special_ids})
        self.model = KosmosG(ModelConfig.model_validate(cfg.model_dump()), with_aligner_decoder=True)
        tower = load_tower(self.source("clip"), cfg.vision)
        assign_weights(self.model.vision, tower, source=str(self.source("clip")))
        self.trains = self.trained_reader()

    def tokenizer_folder(self) -> Path:
        """The folder of the SentencePiece model: `init_from.tokenizer`, or beside the CLIP of `kg base clip`."""
        if "tokenizer" in self.recipe.init_from:
            return self.source("tokenizer")
        folder = self.source("clip") / "sentencepiece"
        if not folder.is_dir():
            raise ConfigError(
                f"init_from.clip: {self.recipe.init_from['clip']} has no tokenizer for the MLLM; name one in "
                "init_from.tokenizer: a folder with a SentencePiece model, or a Hub id such as "
                "microsoft/kosmos-2-patch14-224"
            )
        return folder

    def collator(self, pool: Pool | None) -> Collator:
        collator = super().collator(pool)
        collator.eos = True
        return collator

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        assert batch.tokens is not None and batch.token_mask is not None and batch.image_mask is not None
        # The last token is only ever a target, and never an image: its slots need no check.
        hidden_BTD = self.model.hidden(batch.tokens, batch.token_mask, batch.image_mask, batch.images)[:, :-1]
        targets_BT = batch.tokens[:, 1:]
        ids = self.model.cfg.special_ids
        predicted_BT = batch.token_mask[:, 1:] & (targets_BT != ids.boi) & (targets_BT != ids.eoi)
        logits_MV = self.model.mllm.logits(hidden_BTD[predicted_BT])
        return {"text": F.cross_entropy(logits_MV.float(), targets_BT[predicted_BT])}

    def export(self, folder: Path) -> None:
        save_kosmosg(self.model, folder)
        copy_tokenizer(self.tokenizer_folder(), folder / TOKENIZER)


class AlignStage(KosmosGStage):
    """Stage 2, text only: AlignerNet's conditioning is pulled to the CLIP text encoder's, and back to MLLM states.

    Source: KOSMOS-G (arXiv:2310.02992), section 2.2; the factor S/T and the pads in the reconstruction are the
    released code's.
    """

    needs = frozenset({"tokens", "clip_tokens"})
    trains = ("model.aligner.",)

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        folder = self.source("model")
        self.tokenizer = Tokenizer.load(folder / TOKENIZER)
        fresh = () if has_aligner(folder) else (ALIGNER,)
        if fresh:
            _log.warning("%s has no AlignerNet, as the result of stage 1: it starts fresh", folder)
        self.model = load_kosmosg(folder, with_aligner_decoder=True, fresh=fresh, aligner=self.other_aligner(folder))
        self.clip_tokenizer = CLIPTokenizer.from_pretrained(self.source("text") / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(self.source("text") / "text_encoder")

    def collator(self, pool: Pool | None) -> Collator:
        collator = super().collator(pool)
        collator.clip_tokenizer = self.clip_tokenizer
        return collator

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        assert batch.tokens is not None and batch.token_mask is not None and batch.image_mask is not None
        with torch.no_grad():
            wanted_BSd = self.text(batch.clip_tokens).last_hidden_state.float()
            hidden_BTD = self.model.hidden(batch.tokens, batch.token_mask, batch.image_mask)
        aligned_BSd = self.model.aligner.encode(hidden_BTD, batch.token_mask)
        losses = {"mse": F.mse_loss(aligned_BSd.float(), wanted_BSd)}
        if self.model.aligner.decoder is None:
            return losses
        num_tokens = hidden_BTD.shape[1]
        rebuilt_BTD = self.model.aligner.decode(aligned_BSd, num_tokens)
        factor = aligned_BSd.shape[1] / num_tokens
        return losses | {"reconstruction": F.mse_loss(rebuilt_BTD.float(), hidden_BTD.float()) * factor}


class InstructStage(KosmosGStage):
    """Stage 3: the frozen U-Net's noise-prediction error trains the reader and AlignerNet through its conditioning.

    Source: KOSMOS-G (arXiv:2310.02992), section 2.3.
    """

    needs = frozenset({"tokens", "images", "moments"})
    options = frozenset({"vision_blocks", "subject"})
    uses_pool = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        folder = self.source("model")
        self.tokenizer = Tokenizer.load(folder / TOKENIZER)
        self.model = load_kosmosg(folder, aligner=self.other_aligner(folder))
        self.diffusion = load_decoder(self.source(DECODER))
        self.diffusion.check_conditioning(self.model.cfg.aligner.width)
        self.diffusion.to(memory_format=torch.channels_last)
        self.trains = (*self.trained_reader(), "model.aligner.encoder.")

    def heavy_parts(self) -> list[nn.Module]:
        return [self.diffusion.unet]

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        assert batch.moments is not None and batch.subject is not None
        conditioning_BSd = self._encode(batch)
        draws_B = random.uniform().to(conditioning_BSd.device)
        null_1Sd = self.model.encode_null()
        conditioning_BSd = torch.where((draws_B < DROP_CONDITION)[:, None, None], null_1Sd, conditioning_BSd)
        mean_BCHW, logvar_BCHW = batch.moments.chunk(2, dim=1)
        latents_BCHW = self.diffusion.sample_latents(mean_BCHW, logvar_BCHW, random=random)
        weight_BHW = 1.0 + self.option("subject", 0.0) * batch.subject
        loss = self.diffusion.noise_loss(latents_BCHW, conditioning_BSd, random=random, weight_BHW=weight_BHW)
        return {"diffusion": loss}

    @torch.no_grad()
    def preview(self, batch: Batch, generator: torch.Generator) -> Tensor:
        defaults = self.model.cfg.generation
        wanted_BSd, null_1Sd = self._encode(batch)[:32], self.model.encode_null()
        return preview_pictures(self.diffusion, wanted_BSd, null_1Sd, generator, guidance_scale=defaults.guidance_scale)

    def export(self, folder: Path) -> None:
        """Write the model with the decoder that it was trained for: its folder, or the Hub id that named it."""
        named = self.recipe.init_from[DECODER]
        is_folder = Path(named).is_dir()
        self.model.cfg = self.model.cfg.model_copy(update={"decoder": DECODER if is_folder else named})
        super().export(folder)
        if is_folder:
            copy_folder(self.source(DECODER), folder / DECODER)

    def _encode(self, batch: Batch) -> Tensor:
        assert batch.tokens is not None and batch.token_mask is not None and batch.image_mask is not None
        return self.model.encode(batch.tokens, batch.token_mask, batch.image_mask, batch.images)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a part of a model into another, replacing what was there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a SentencePiece tokenizer; the folder may hold other things, as a Hub repository does."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (*MODEL_NAMES, DICTIONARY_NAME):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
