"""Prompt encoding for a U-Net: KosmosG and its tokenizer, with caches of image features and negative prompts.

Shape letters: B prompts, T tokens, N images, Q queries per image, D MLLM width, S d conditioning.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from PIL import Image
from torch import Tensor, nn

from kgcli.config import OFFLOADS
from kgcli.data.images import to_vision_pixels
from kgcli.data.prompt import Prompt, check_length, encode, pad_sequences
from kgcli.data.prompt import Sequence as TokenSequence
from kgcli.data.tokenizer import Tokenizer
from kgcli.errors import UsageError
from kgcli.inference.image_weights import weighted_terms
from kgcli.inference.request import Request
from kgcli.model.kosmosg import KosmosG
from kgcli.runtime import choose_device, choose_dtype
from kgcli.weights.folder import ModelFolder
from kgcli.weights.load import load_kosmosg
from kgcli.weights.quantize import move
from kgcli.weights.safetensors import DTYPES

KEPT_IMAGES = 64  # cached features; 512 KiB each at full size in fp32
KEPT_NEGATIVES = 64  # cached negative prompts; 231 KiB each at full size in fp32


class PromptEncoder:
    """Encoder of interleaved prompts; repeated images and negative prompts are computed once."""

    def __init__(self, model: KosmosG, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = model.mllm.embedding.weight.device
        self.offload = "none"
        self._images = _Kept(KEPT_IMAGES)
        self._negatives = _Kept(KEPT_NEGATIVES)

    @property
    def dtype(self) -> torch.dtype:
        """The precision the model computes in."""
        return self.model.mllm.embedding.weight.dtype

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        """Move the model or change its precision; the caches are cleared.

        Raises: UsageError for another precision of a quantised model.
        """
        self.device = device or self.device
        if dtype not in (None, self.dtype) and self.model.quantize != "none":
            raise UsageError(f"a model in {self.model.quantize} keeps its precision; give torch_dtype when loading it")
        self.model.to(dtype=dtype)
        move(self.model, self.device if self.offload == "none" else torch.device("cpu"))
        self.forget()

    def set_offload(self, offload: str, device: torch.device) -> None:
        """Keep the weights in main memory and move the whole model ("model") or one part at a time ("sequential") to
        the device while it computes."""
        assert offload in OFFLOADS, offload
        self.offload = offload
        self.to(device)

    def forget(self) -> None:
        """Clear the caches; call this after changing the weights."""
        self._images.clear()
        self._negatives.clear()

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], images: Sequence[Sequence[Image.Image]]) -> Tensor:
        """Encode prompts and their images to conditionings (B, S, d); equal prompts are computed once.

        Raises: PromptError for more images or tokens than the model takes.
        """
        hashes = [[hash_image(image) for image in group] for group in images]
        keys = [(prompt.parts, tuple(group)) for prompt, group in zip(prompts, hashes, strict=True)]
        rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        first = [keys.index(key) for key in rows]
        with self._lent(self.model, when="model"):
            found_BSd = self._encode_weighted(
                [prompts[i] for i in first], [images[i] for i in first], [hashes[i] for i in first]
            )
        return found_BSd[[rows[key] for key in keys]]

    def encode_request(self, request: Request) -> tuple[Tensor, Tensor]:
        """Encode a request to its positive and negative conditioning, (1, S, d) each."""
        words = request.negative_prompt
        negative = Prompt(parts=(words,) if words.strip() else ())
        images = [image.load() for image in request.images]
        return self.encode([request.prompt], [images]), self.encode_negatives([negative])

    def encode_negatives(self, prompts: Sequence[Prompt]) -> Tensor:
        """Encode negative prompts to conditionings (B, S, d): text only, or the start token for an empty one."""
        for prompt in prompts:
            if prompt.parts not in self._negatives:
                # One by one, so that a cached value does not depend on its batch.
                self._negatives[prompt.parts] = self.encode([prompt], [[]])
        return torch.cat([self._negatives[prompt.parts] for prompt in prompts])

    def _encode_weighted(
        self, prompts: Sequence[Prompt], images: Sequence[Sequence[Image.Image]], hashes: Sequence[Sequence[str]]
    ) -> Tensor:
        """Encode prompts with image weights: those without in one batch, the others one by one."""
        weighted = [row for row, prompt in enumerate(prompts) if any(ref.weight != 1 for ref in prompt.images)]
        if not weighted:
            return self._encode(prompts, images, hashes)
        self._sequences(prompts)  # checks lengths
        plain = [row for row in range(len(prompts)) if row not in weighted]
        rows = {row: self._mean(prompts[row], images[row], hashes[row]) for row in weighted}
        if plain:
            found_BSd = self._encode(
                [prompts[row] for row in plain], [images[row] for row in plain], [hashes[row] for row in plain]
            )
            rows |= dict(zip(plain, found_BSd.split(1), strict=True))
        return torch.cat([rows[row] for row in range(len(prompts))])

    def _mean(self, prompt: Prompt, images: Sequence[Image.Image], hashes: Sequence[str]) -> Tensor:
        """Return the weighted mean of the terms of a prompt with image weights, (1, S, d)."""
        terms = weighted_terms(prompt)
        found = [
            self._encode([term.prompt], [[images[i] for i in term.images]], [[hashes[i] for i in term.images]])
            for term in terms
        ]
        fractions_N1 = torch.tensor([[term.fraction] for term in terms], device=found[0].device)
        return (fractions_N1[..., None] * torch.cat(found).float()).sum(dim=0, keepdim=True).to(self.dtype)

    def _encode(
        self, prompts: Sequence[Prompt], images: Sequence[Sequence[Image.Image]], hashes: Sequence[Sequence[str]]
    ) -> Tensor:
        pad_id = self.model.cfg.special_ids.pad
        tokens_BT, token_mask_BT, image_mask_BT = pad_sequences(self._sequences(prompts), pad_id)
        seen = (lambda: self._see(prompts, images, hashes)) if any(images) else None
        return self.model.encode(
            tokens_BT.to(self.device),
            token_mask_BT.to(self.device),
            image_mask_BT.to(self.device),
            seen,
            self._lend_parts,
        )

    def _sequences(self, prompts: Sequence[Prompt]) -> list[TokenSequence]:
        """Tokenize prompts with slots for their images, and check the model's limits."""
        cfg = self.model.cfg
        sequences = [encode(prompt.fragments, self.tokenizer, cfg.resampler.num_queries) for prompt in prompts]
        for prompt, sequence in zip(prompts, sequences, strict=True):
            check_length(prompt, sequence, max_images=cfg.max_images, max_tokens=cfg.mllm.max_positions)
        return sequences

    def _see(
        self, prompts: Sequence[Prompt], images: Sequence[Sequence[Image.Image]], hashes: Sequence[Sequence[str]]
    ) -> Tensor:
        """Return the image features for the MLLM, (N, Q, D); equal images are computed once."""
        refs = [ref for prompt in prompts for ref in prompt.images]
        keys = [
            (digest, ref.fit or self.model.cfg.image_fit)
            for ref, digest in zip(refs, (one for group in hashes for one in group), strict=True)
        ]
        given = dict(zip(keys, (image for group in images for image in group), strict=True))
        found = {key: self._images[key] for key in given if key in self._images}
        for key, image in given.items():
            if key not in found:
                found[key] = self._images[key] = self._features(image, fit=key[1])
        return torch.cat([found[key] for key in keys])

    def _features(self, image: Image.Image, fit: str) -> Tensor:
        """Encode one image by vision tower and resampler, (1, Q, D).

        One by one: a batch changes the order of sums, and a cached value must not depend on its batch.
        """
        pixels = torch.from_numpy(to_vision_pixels(image, self.model.cfg.vision.image_size, fit))
        return self.model.see(pixels[None].to(self.device, self.dtype), self._lend_parts)

    def _lend_parts(self, *parts: nn.Module) -> AbstractContextManager[None]:
        return self._lent(*parts, when="sequential")

    @contextmanager
    def _lent(self, *parts: nn.Module, when: str) -> Iterator[None]:
        """Move parts to the device while they compute, if this offload mode is on."""
        if self.offload != when:
            yield
            return
        for part in parts:
            move(part, self.device)
        try:
            yield
        finally:
            for part in parts:
                move(part, torch.device("cpu"))


def load_encoder(
    folder: ModelFolder, *, device: str = "auto", dtype: str = "auto", quantize: str = "none"
) -> PromptEncoder:
    """Load the encoder of a model folder, without an image decoder.

    Raises: MissingError, IncompatibleError, UsageError.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype, device, folder.num_bytes)
    model = load_kosmosg(folder.path, device=device, dtype=DTYPES[dtype], quantize=quantize)
    return PromptEncoder(model, folder.tokenizer)


class _Kept(OrderedDict[object, Tensor]):
    """LRU cache of tensors."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __getitem__(self, key: object) -> Tensor:
        self.move_to_end(key)
        return super().__getitem__(key)

    def __setitem__(self, key: object, value: Tensor) -> None:
        super().__setitem__(key, value)
        while len(self) > self.limit:
            self.popitem(last=False)


def hash_image(image: Image.Image) -> str:
    """Return a hash of an image's pixels, mode and size."""
    digest = hashlib.sha256(f"{image.mode} {image.size} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
