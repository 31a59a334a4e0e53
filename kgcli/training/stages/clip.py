"""The stage that trains a CLIP pair and its tokenizers; its result is a folder that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from kgcli.config import Strict
from kgcli.data.batch import Batch, Collator
from kgcli.data.pool import Pool
from kgcli.data.tokenizer import train_sentencepiece
from kgcli.model.randomness import StepRandom
from kgcli.training.stages.base import Setup, Stage, Whole, alone
from kgcli.training.stages.start import copy_folder
from kgcli.weights.safetensors import assign_weights


class ClipOptions(Strict):
    """locked_text: freeze the text encoder. projection: width of the shared space. clip_vocab,
    sentencepiece_vocab: pieces of the two tokenizers. captions: sentences that they are trained on."""

    locked_text: bool = False
    projection: int = 128
    clip_vocab: int = 1024
    sentencepiece_vocab: int = 800
    captions: int = 20000


class ClipStage(Stage):
    """Images and captions to one space: transformers' CLIPModel, and two tokenizers trained on the data's captions.

    With `init_from.clip`, the result of an earlier run, it continues from that; with `init_from.text`, a folder with
    tokenizer and text encoder such as a diffusers one, its text tower starts from those. With locked_text a U-Net
    trained with that text encoder still fits. Source: locked-image tuning (arXiv:2111.07991), the other way round.
    """

    needs = frozenset({"images", "clip_tokens"})
    Options = ClipOptions
    options: ClipOptions
    use = "match"
    compiles = ("clip",)
    contrasts = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.tokenizer = self._tokenizer()
        text = CLIPTextConfig(
            **self.setup.part("clip_text"),
            vocab_size=len(self.tokenizer),
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        vision = CLIPVisionConfig(**self.setup.part("clip_vision"))
        self.clip = CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=self.options.projection)
        )
        if "clip" in setup.init_from:
            start = load_file(self.setup.source("clip") / "clip" / "model.safetensors")
            assign_weights(self.clip, start, source=str(self.setup.source("clip")))
        elif "text" in setup.init_from:
            folder = self.setup.source("text")
            assign_weights(
                self.clip.text_model,
                CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict(),
                source=str(folder),
            )
        locked = ("vision_model", "visual_projection", "text_projection", "logit_scale")
        self.trains = tuple(f"clip.{name}" for name in locked) if self.options.locked_text else ("clip.",)

    def collator(self, pool: Pool | None) -> Collator:
        vision_size = int(self.setup.part("clip_vision")["image_size"])
        return Collator(self.needs, self.setup.image_size, vision_size, clip_tokenizer=self.tokenizer)

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"clip": [self.clip]}

    def forward(self, batch: Batch, random: StepRandom, whole: Whole = alone) -> dict[str, Tensor]:
        assert batch.images is not None and batch.clip_tokens is not None
        out = self.clip(input_ids=batch.clip_tokens, pixel_values=batch.images)
        images, texts, tokens = whole(out.image_embeds, out.text_embeds, batch.clip_tokens)
        logits = (texts @ images.T * self.clip.logit_scale.exp()).T.float()
        return {"contrast": caption_contrast(logits, tokens)}

    def _captions(self) -> list[str]:
        return self.setup.texts(self.options.captions, self.setup.seed)

    def _tokenizer(self) -> CLIPTokenizer:
        for part in ("clip", "text"):
            if part in self.setup.init_from:
                return CLIPTokenizer.from_pretrained(self.setup.source(part) / "tokenizer")
        length = int(self.setup.part("clip_text")["max_position_embeddings"])
        return clip_tokenizer(self._captions(), self.options.clip_vocab, length)

    def export(self, folder: Path) -> None:
        self.clip.save_pretrained(folder / "clip")
        text = CLIPTextModel(self.clip.config.text_config)
        text.load_state_dict(self.clip.text_model.state_dict())
        text.save_pretrained(folder / "text_encoder")
        if "clip" in self.setup.init_from:
            for part in ("tokenizer", "sentencepiece"):
                copy_folder(self.setup.source("clip") / part, folder / part)
            return
        if "text" in self.setup.init_from:
            copy_folder(self.setup.source("text") / "tokenizer", folder / "tokenizer")
        else:
            # The tokenizer saves the padding of its last call, which differs between processes.
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
            self.tokenizer.save_pretrained(folder / "tokenizer")
        train_sentencepiece(self._captions(), self.options.sentencepiece_vocab, folder / "sentencepiece")


def caption_contrast(logits_BB: Tensor, tokens_BL: Tensor) -> Tensor:
    """Return the mean loss of matching images (down) and captions (across) to each other.

    Identical captions are not each other's negatives.
    """
    same_BB = (tokens_BL[:, None] == tokens_BL[None]).all(-1).float()
    wanted_BB = same_BB / same_BB.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits_BB, wanted_BB) + F.cross_entropy(logits_BB.T, wanted_BB))


def clip_tokenizer(captions: list[str], vocab_size: int, length: int) -> CLIPTokenizer:
    """Return a CLIP tokenizer trained on captions; it pads to `length` tokens."""
    letters = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]  # the byte alphabet of GPT-2's tokenizer
    symbols = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    plain = CLIPTokenizer(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[])
    # The trainer numbers symbols randomly and breaks ties by number, unless they are given as special tokens; taking
    # its merges alone gives the same tokenizer in every process and after every resume.
    # Its progress bars end in blank lines on stdout, even where there is no terminal.
    options = {"new_special_tokens": symbols, "show_progress": False}
    trained = plain.train_new_from_iterator(captions, vocab_size=vocab_size, **options)
    merges = [tuple(merge) for merge in json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]]
    pieces = symbols + [left + right for left, right in merges]
    tokenizer = CLIPTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges)
    tokenizer.model_max_length = length
    return tokenizer
