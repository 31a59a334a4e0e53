"""Stages 1 and 3 of the paper, pretrain and instruct, and the base of all stages that train a KOSMOS-G."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from kgcli.config import AlignerConfig, ModelConfig, Strict
from kgcli.data.batch import Batch, Collator
from kgcli.data.pool import Pool
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import ConfigError, IncompatibleError
from kgcli.model.kosmosg import KosmosG
from kgcli.model.randomness import StepRandom
from kgcli.model.timesteps import TimestepOptions
from kgcli.recipe import explain
from kgcli.training.preview import NUM_PREVIEW, preview_images
from kgcli.training.stages.base import Setup, Stage
from kgcli.training.stages.mllm_lora import ADAPTER, add_lora, merged_weights, save_adapter
from kgcli.training.stages.start import copy_folder, copy_tokenizer, is_on_hub
from kgcli.weights.load import save_kosmosg

DROP_CONDITION = 0.1  # fraction of rows whose conditioning becomes the null one. Source: the published instruct stage
TOKENIZER = "tokenizer"  # folders inside a model folder
DECODER = "decoder"


class EncoderOptions(Strict):
    """vision_blocks: number of last blocks of the vision tower that train; 1 in the published model. All blocks: the
    whole tower. With `train: lora` or `aligner` none does."""

    vision_blocks: int = 1


class InstructOptions(EncoderOptions, TimestepOptions):
    """subject: extra weight of the error inside subjects, where the data have masks. caption: weight of the
    squared distance of the conditioning from what the decoder's own text encoder gives for the samples' captions; only
    for data whose captions tell what their images show, as those of the nano world."""

    subject: float = 0.0
    caption: float = 0.0


class KosmosGStage(Stage):
    """The base of what trains a KOSMOS-G: the model, its tokenizer, and a model folder as result."""

    has_shapes = True
    model: KosmosG
    tokenizer: Tokenizer
    packs: ClassVar[bool] = True  # its loss does not depend on the hidden states of padding

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.clip_tokenizer: CLIPTokenizer | None = None
        self.text: CLIPTextModel | None = None  # of a stage whose conditioning is compared with it

    def pack(self, row_tokens: int) -> None:
        """Let several samples share a row of the MLLM. Raises: ConfigError where the loss sees the padding."""
        if not self.packs:
            raise ConfigError(f"pack: the loss of stage {self.setup.stage} counts the padding; set data.bucket instead")
        self.model.mllm.row_tokens = row_tokens

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer of the model that the stage starts from."""
        return self.setup.load_tokenizer(lambda: self.setup.source("model") / TOKENIZER)

    def load_text(self, part: str) -> None:
        """Load the text encoder of a part, whose conditioning the AlignerNet is to give, and its tokenizer.

        Raises: ConfigError, MissingError; IncompatibleError for one of other sizes than the AlignerNet's.
        """
        tokenizer, text = self.setup.load_text(part)
        sizes, cfg = text.config, self.model.cfg.aligner
        found, wanted = (sizes.max_position_embeddings, sizes.hidden_size), (cfg.num_queries, cfg.width)
        if found != wanted:
            raise IncompatibleError(
                f"init_from.{part}: its text encoder gives {found[0]} x {found[1]} numbers, the AlignerNet "
                f"{wanted[0]} x {wanted[1]}"
            )
        self.clip_tokenizer, self.text = tokenizer, text

    def distance_from_words(self, conditioning_BSd: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared distance of a conditioning from the text encoder's on the samples' captions."""
        assert self.text is not None
        with torch.no_grad():
            wanted_BSd = self.text(batch.clip_tokens).last_hidden_state.float()
        return F.mse_loss(conditioning_BSd.float(), wanted_BSd)

    def other_aligner(self) -> AlignerConfig | None:
        """Return the start's AlignerNet configuration changed by the recipe's `parts.aligner`; None without that.

        Raises:
            ConfigError: an unknown key or wrong value.
        """
        if "aligner" not in self.setup.parts:
            return None
        sizes = self.setup.model_config().aligner.model_dump() | self.setup.parts["aligner"]
        try:
            return AlignerConfig.model_validate(sizes)
        except ValidationError as error:
            raise ConfigError(f"parts.aligner: {explain(error, AlignerConfig)}") from None

    def trained_encoder(self, vision_blocks: int) -> tuple[str, ...]:
        """Return the parameter prefixes of pretrain and instruct: MLLM, resampler and the last vision blocks."""
        last = len(self.model.vision.blocks)
        first = last - vision_blocks
        if first <= 0:
            return ("model.mllm.", "model.resampler.", "model.vision.")
        blocks = tuple(f"model.vision.blocks.{number}." for number in range(first, last))
        return ("model.mllm.", "model.resampler.", "model.vision.final_norm.", *blocks)

    def collator(self, pool: Pool | None) -> Collator:
        cfg = self.model.cfg
        return Collator(
            self.needs_with(self.setup.options),
            self.setup.image_size,
            cfg.vision.image_size,
            vision_fit="stretch" if cfg.image_fit == "stretch" else "crop",  # the published model trains on crops
            num_slots=cfg.resampler.num_queries,
            tokenizer=self.tokenizer,
            clip_tokenizer=self.clip_tokenizer,
            pool=pool,
            max_tokens=cfg.mllm.max_positions,
        )

    def parts(self) -> dict[str, list[nn.Module]]:
        aligner = [self.model.aligner.encoder, self.model.aligner.decoder]
        return {
            "vision": [self.model.vision],
            "mllm": [self.model.mllm],
            "aligner": [half for half in aligner if half is not None],
        }

    def export(self, folder: Path) -> None:
        save_kosmosg(self.model, folder, weights=merged_weights(self.model))
        copy_folder(self.setup.source("model") / TOKENIZER, folder / TOKENIZER)


class PretrainStage(KosmosGStage):
    """Stage 1: next-token prediction over text, caption pairs and interleaved documents.

    Only text is predicted; image slots and their brackets never are. Source: KOSMOS-G (arXiv:2310.02992), section 2.1.

    With `init_from.model`, a model folder, it continues from that model: as in the later stages, its config.json,
    tokenizer and vision tower are used, and the recipe's `model` is not.
    """

    needs = frozenset({"tokens", "images"})
    Options = EncoderOptions
    options: EncoderOptions
    use = "read"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.tokenizer = setup.load_tokenizer(self.tokenizer_folder)
        self.model = self._continued() if "model" in setup.init_from else self._fresh()
        self.trains = self.trained_encoder(self.options.vision_blocks)

    def _fresh(self) -> KosmosG:
        """Return a new model of the recipe's sizes around the vision tower of a CLIP."""
        given = self.setup.model
        sizes = given.mllm.model_copy(update={"vocab_size": self.tokenizer.vocab_size})
        cfg = given.model_copy(update={"mllm": sizes, "special_ids": self.tokenizer.special_ids})
        model = KosmosG(ModelConfig.model_validate(cfg.model_dump()), with_aligner_decoder=True)
        self.setup.load_tower(model.vision)
        return model

    def _continued(self) -> KosmosG:
        """Return the model of `init_from.model`. Raises: ConfigError where init_from also names a part of it."""
        for part in ("clip", "tokenizer"):
            if part in self.setup.init_from:
                model = self.setup.init_from["model"]
                raise ConfigError(
                    f"init_from has model and {part}, but a model has a vision tower and a tokenizer of its own; give "
                    f"init_from='{{model: {model}}}' to continue from the model"
                )
        return self.setup.load_model(with_aligner_decoder=True)

    def tokenizer_folder(self) -> Path:
        """Return the folder of the SentencePiece model: that of the model, `init_from.tokenizer`, or beside the CLIP
        of `kg base clip`."""
        if "model" in self.setup.init_from:
            return self.setup.source("model") / TOKENIZER
        if "tokenizer" in self.setup.init_from:
            return self.setup.source("tokenizer")
        folder = self.setup.source("clip") / "sentencepiece"
        if not folder.is_dir():
            raise ConfigError(
                f"init_from.clip: {self.setup.init_from['clip']} has no tokenizer for the MLLM; name one in "
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
        # The last token is only ever a target.
        hidden_BTD = self.model.hidden(batch.tokens, batch.token_mask, batch.image_mask, batch.images)[:, :-1]
        predicted_BT = self._predicted(batch)
        logits_MV = self.model.mllm.logits(hidden_BTD[predicted_BT])
        return {"text": F.cross_entropy(logits_MV.float(), batch.tokens[:, 1:][predicted_BT])}

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"text": int(self._predicted(batch).sum())}

    def _predicted(self, batch: Batch) -> Tensor:
        """Return True for the tokens after the first that are predicted, (B, T - 1)."""
        assert batch.tokens is not None and batch.token_mask is not None
        targets_BT, ids = batch.tokens[:, 1:], self.model.cfg.special_ids
        return batch.token_mask[:, 1:] & (targets_BT != ids.boi) & (targets_BT != ids.eoi)

    def export(self, folder: Path) -> None:
        save_kosmosg(self.model, folder)
        copy_tokenizer(self.tokenizer_folder(), folder / TOKENIZER)


class InstructStage(KosmosGStage):
    """Stage 3: the frozen U-Net's noise-prediction error trains MLLM, resampler and AlignerNet.

    With `train: aligner` it trains AlignerNet alone, with `train: lora` low-rank adapters of the MLLM, which the
    exported model has merged; its folder `adapter` holds them for peft.

    Source: KOSMOS-G (arXiv:2310.02992), section 2.3.
    """

    needs = frozenset({"tokens", "images", "moments"})
    Options = InstructOptions
    options: InstructOptions
    uses_pool = True
    takes_hidden = frozenset({"aligner"})  # of which the MLLM and what it sees are frozen
    compiles = ("unet",)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.tokenizer = self.load_tokenizer()
        other = self.other_aligner()
        if other is not None and setup.train == "lora":
            raise ConfigError("parts.aligner makes a new AlignerNet, which train: lora would leave untrained")
        self.model = setup.load_model(aligner=other)
        self.diffusion = setup.load_decoder()
        self.diffusion.check_conditioning(self.model.cfg.aligner.width)
        self.diffusion.to(memory_format=torch.channels_last)
        self.trains = self._trained()
        self.options.check_timesteps(self.diffusion.num_train_timesteps)
        if self.options.caption:
            self.load_text(DECODER)

    @classmethod
    def needs_with(cls, options: Mapping[str, float]) -> frozenset[str]:
        return cls.needs | ({"clip_tokens"} if options.get("caption") else frozenset())

    def collator(self, pool: Pool | None) -> Collator:
        collator = super().collator(pool)
        collator.vision_fit = self.model.cfg.image_fit  # images of prompts become square as in inference
        return collator

    def parts(self) -> dict[str, list[nn.Module]]:
        return {**super().parts(), "unet": [self.diffusion.unet]}

    def idle_parts(self) -> list[nn.Module]:
        return [self.diffusion.vae]

    def forward(self, batch: Batch, random: StepRandom) -> dict[str, Tensor]:
        assert batch.moments is not None and batch.subject is not None
        conditioning_BSd = self._encode(batch)
        losses: dict[str, Tensor] = {}
        if self.options.caption:
            losses = {"caption": self.distance_from_words(conditioning_BSd, batch) * self.options.caption}
        draws_B = random.uniform().to(conditioning_BSd.device)
        null_1Sd = self.model.encode_null()
        conditioning_BSd = torch.where((draws_B < DROP_CONDITION)[:, None, None], null_1Sd, conditioning_BSd)
        mean_BCHW, logvar_BCHW = batch.moments.chunk(2, dim=1)
        latents_BCHW = self.diffusion.sample_latents(mean_BCHW, logvar_BCHW, random=random)
        weight_BHW = 1.0 + self.options.subject * batch.subject
        loss = self.diffusion.noise_loss(
            latents_BCHW,
            conditioning_BSd,
            random=random,
            timesteps_B=self.options.draw_timesteps(random, self.diffusion.num_train_timesteps),
            weight_BHW=weight_BHW,
        )
        return {"diffusion": loss, **losses}

    @torch.no_grad()
    def preview(self, batch: Batch, generator: torch.Generator) -> Tensor:
        defaults = self.model.cfg.generation
        wanted_BSd, null_1Sd = self._encode(batch)[:NUM_PREVIEW], self.model.encode_null()
        scale, side = defaults.guidance_scale, self.setup.image_size
        return preview_images(self.diffusion, wanted_BSd, null_1Sd, generator, side=side, guidance_scale=scale)

    def export(self, folder: Path) -> None:
        """Write the model with the decoder that it was trained for: a copy of its folder, or its Hub id."""
        named = self.setup.init_from[DECODER]
        is_folder = not is_on_hub(named)
        self.model.cfg = self.model.cfg.model_copy(update={"decoder": DECODER if is_folder else named})
        super().export(folder)
        if is_folder:
            copy_folder(self.setup.source(DECODER), folder / DECODER)
        if self.setup.train == "lora":
            save_adapter(self.model.mllm, folder / ADAPTER)

    def _trained(self) -> tuple[str, ...]:
        """Return the prefixes of what trains; of `train: lora` adapters are added first."""
        if self.setup.train == "lora":
            add_lora(self.model.mllm, self.setup.lora)
            return tuple(name for name, _ in self.named_parameters() if ".lora_" in name)
        encoder = () if self.setup.train == "aligner" else self.trained_encoder(self.options.vision_blocks)
        return (*encoder, "model.aligner.encoder.")

    def _encode(self, batch: Batch) -> Tensor:
        assert batch.tokens is not None and batch.token_mask is not None and batch.image_mask is not None
        if batch.hidden is not None:
            return self.model.aligner.encode(batch.hidden[:, : batch.tokens.shape[1]], batch.token_mask)
        return self.model.encode(batch.tokens, batch.token_mask, batch.image_mask, batch.images)
