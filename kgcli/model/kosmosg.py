"""The figure as code: vision tower, resampler, MLLM and AlignerNet make one conditioning of one prompt.

Shape letters: B batch, T tokens, N images of the whole batch, S side in pixels (conditioning: its length),
Q queries per image, D MLLM width, d conditioning width.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from kgcli.config import CONFIG_NAME, AlignerConfig, ModelConfig, read_model_config
from kgcli.errors import UsageError
from kgcli.files import make_folder, write_whole
from kgcli.model.aligner import AlignerNet
from kgcli.model.mllm import MLLM
from kgcli.model.resampler import Resampler
from kgcli.model.vision import VisionTower
from kgcli.weights.quantization import check_quantize
from kgcli.weights.quantize import quantize_linears
from kgcli.weights.safetensors import assign_weights, check_weights, iter_weights, read_weights, write_weights

WEIGHTS_NAME = "model.safetensors"
ALIGNER = "aligner."
ALIGNER_DECODER = "aligner.decoder."  # serves the alignment stage only; dropped where it is not asked for


class KosmosG(nn.Module):
    """Everything that reads a prompt; the image decoder is apart.

    Source: KOSMOS-G (arXiv:2310.02992), Figure 2.
    """

    def __init__(self, cfg: ModelConfig, *, with_aligner_decoder: bool = False) -> None:
        super().__init__()
        self.cfg = cfg
        self.quantize = "none"  # how the MLLM's linear layers are held
        self.vision = VisionTower(cfg.vision)
        self.resampler = Resampler(cfg.resampler, cfg.vision.width, cfg.mllm.width)
        self.mllm = MLLM(cfg.mllm, cfg.special_ids.pad)
        self.aligner = AlignerNet(cfg.aligner, cfg.mllm.width, with_decoder=with_aligner_decoder)

    def encode(
        self, tokens_BT: Tensor, token_mask_BT: Tensor, image_mask_BT: Tensor, images_N3SS: Tensor | None = None
    ) -> Tensor:
        """Read interleaved prompts; return what the U-Net cross-attends to.

        Shapes:
            token_mask_BT: True = a real token; image_mask_BT: True = a slot for one of an image's Q vectors
            images_N3SS: in reading order over the whole batch; N may be 0
            returns: (B, S, d), the shape of the decoder's own text embedding
        """
        hidden_BTD = self.hidden(tokens_BT, token_mask_BT, image_mask_BT, images_N3SS)
        return self.aligner.encode(hidden_BTD, token_mask_BT)

    def hidden(
        self, tokens_BT: Tensor, token_mask_BT: Tensor, image_mask_BT: Tensor, images_N3SS: Tensor | None = None
    ) -> Tensor:
        """The MLLM's half of `encode`: hidden states (B, T, D)."""
        embeddings_BTD = self.embed(tokens_BT, image_mask_BT, images_N3SS)
        return self.mllm(embeddings_BTD, token_mask_BT)

    def embed(self, tokens_BT: Tensor, image_mask_BT: Tensor, images_N3SS: Tensor | None = None) -> Tensor:
        """Words and pictures in one sequence, (B, T, D)."""
        words_BTD = self.mllm.embed(tokens_BT)
        num_images = 0 if images_N3SS is None else len(images_N3SS)
        self._check_slots(image_mask_BT, num_images)
        if images_N3SS is None or num_images == 0:
            return words_BTD
        return place_images(words_BTD, image_mask_BT, self.resampler(self.vision(images_N3SS)))

    def encode_null(self, batch_size: int = 1) -> Tensor:
        """The conditioning of no prompt at all, (B, S, d): the start token alone."""
        tokens_11 = torch.full((1, 1), self.cfg.special_ids.bos, device=self.mllm.embedding.weight.device)
        mask_11 = torch.ones_like(tokens_11, dtype=torch.bool)
        return self.encode(tokens_11, mask_11, ~mask_11).expand(batch_size, -1, -1)

    def save_pretrained(self, folder: Path | str, *, dtype: torch.dtype | None = None) -> None:
        """Write sizes and weights; a reader never meets a half-written file.

        Raises: UsageError for a quantised model.
        """
        if self.quantize != "none":
            raise UsageError(f"a model loaded in {self.quantize} cannot be saved; load it with quantize none")
        folder = Path(folder)
        make_folder(folder)
        write_weights(folder / WEIGHTS_NAME, self.state_dict(), dtype=dtype)
        write_whole(folder / CONFIG_NAME, self.cfg.model_dump_json(indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        quantize: str = "none",
        with_aligner_decoder: bool = False,
        fresh: tuple[str, ...] = (),
        aligner: AlignerConfig | None = None,
    ) -> KosmosG:
        """The model of a folder, in evaluation mode.

        Weights under a prefix of `fresh` may be absent from the file; they are then initialised anew. With `aligner`
        it has another AlignerNet than the folder's, initialised anew. `quantize` (8bit, 4bit) holds the MLLM's linear
        layers in few bits, for drawing alone.

        Raises:
            UsageError: `quantize` cannot be, or not without the library.
            MissingError: the folder or a file is not there or is damaged.
            IncompatibleError: sizes or weights are not those of a KOSMOS-G of this version.
        """
        folder = Path(folder)
        check_quantize(quantize, str(device))
        cfg = read_model_config(folder)
        if quantize != "none":
            assert not fresh and not with_aligner_decoder, "what is trained is not quantised"
            return cls._quantized(folder, cfg, torch.device(device), dtype, quantize)
        weights = read_weights(folder / WEIGHTS_NAME, device=device, dtype=dtype)
        if not with_aligner_decoder:
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith(ALIGNER_DECODER)}
        if aligner is not None:
            cfg = cfg.model_copy(update={"aligner": aligner})
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith(ALIGNER)}
            fresh = (*fresh, ALIGNER)
        # Without fresh parts nothing needs memory until its weights arrive.
        with torch.device(device if fresh else "meta"):
            model = cls(cfg, with_aligner_decoder=with_aligner_decoder)
        if fresh:
            model = model.to(dtype)
        assign_weights(model, weights, source=str(folder), fresh=fresh)
        return model.eval()

    @classmethod
    def _quantized(
        cls, folder: Path, cfg: ModelConfig, device: torch.device, dtype: torch.dtype, quantize: str
    ) -> KosmosG:
        """The model with an MLLM in few bits, made weight by weight: it is never whole in full precision."""
        with torch.device("meta"):
            model = cls(cfg)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        found: dict[str, torch.Size] = {}
        weights = quantize_linears(model, _noting_shapes(_reader_weights(folder, dtype), found), quantize, device)
        check_weights(shapes, found, source=str(folder))
        model.load_state_dict(weights, strict=False, assign=True)
        model.quantize = quantize
        return model.eval()

    def _check_slots(self, image_mask_BT: Tensor, num_images: int) -> None:
        slots = int(image_mask_BT.sum())
        per_image = self.cfg.resampler.num_queries
        if slots != num_images * per_image:
            raise UsageError(
                f"the prompts hold {slots} image slots but {num_images} image(s) of {per_image} slots each were given; "
                "give one image per place, in reading order over the whole batch"
            )


def _reader_weights(folder: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """What reads prompts, weight by weight."""
    for name, tensor in iter_weights(folder / WEIGHTS_NAME, dtype=dtype):
        if not name.startswith(ALIGNER_DECODER):
            yield name, tensor


def _noting_shapes(
    weights: Iterator[tuple[str, Tensor]], shapes: dict[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights:
        shapes[name] = tensor.shape
        yield name, tensor


def place_images(words_BTD: Tensor, image_mask_BT: Tensor, pictures_NQD: Tensor) -> Tensor:
    """The word embeddings with picture vectors in the masked places, in row-major order."""
    return words_BTD.masked_scatter(image_mask_BT[..., None], pictures_NQD.to(words_BTD.dtype))
