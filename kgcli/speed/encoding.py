"""Prompts per second: from parsed prompts and opened images to embeddings, against the model's forward pass alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kgcli.data.images import to_vision_pixels
from kgcli.data.prompt import Prompt, encode, pad_sequences
from kgcli.inference.encoder import PromptEncoder
from kgcli.inference.request import Request
from kgcli.runtime import peak_memory
from kgcli.speed.card import Card, spread
from kgcli.speed.clock import arithmetic, count_flops, device_name, ratio, take_turns


def bench_encode(encoder: PromptEncoder, request: Request, batch_size: int, repeats: int, name: str) -> Card:
    """Measure a prompt repeated `batch_size` times with other words behind it, its images new each time."""
    text = request.prompt.format()
    prompts = [Prompt.parse(f"{text} {number}") for number in range(batch_size)]
    images = [image.load() for image in request.images]
    bare = _Bare(encoder, request, prompts)

    def whole() -> object:
        encoder.forget()
        return encoder.encode(prompts, [images] * batch_size)

    encoder.model.requires_grad_(False)  # counting operations follows the gradients there would be
    taken = take_turns({"kgcli": whole, "model": bare}, repeats, str(encoder.device))
    seconds, device = spread([times.wall for times in taken["kgcli"]]), str(encoder.device)
    results = {
        "prompts_per_second": batch_size / seconds["seconds"],
        **seconds,
        **arithmetic(count_flops(bare), seconds["seconds"], device),
        "peak_memory_bytes": peak_memory(device),
        "against_model": ratio(taken["kgcli"], taken["model"]),
    }
    settings = {
        "model": name,
        "device": device_name(device),
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "batch_size": batch_size,
        "images": len(images),
        "tokens": bare.tokens.shape[1],
        "repeats": repeats,
    }
    return Card("encode", settings, results)


class _Bare:
    """The model's forward pass on prepared tensors; an image that all prompts share is encoded once, as by kgcli."""

    def __init__(self, encoder: PromptEncoder, request: Request, prompts: Sequence[Prompt]) -> None:
        model, device = encoder.model, encoder.device
        sequences = [encode(p.fragments, encoder.tokenizer, model.cfg.resampler.num_queries) for p in prompts]
        padded = pad_sequences(sequences, model.cfg.special_ids.pad)
        self.tokens, self.token_mask, self.image_mask = (tensor.to(device) for tensor in padded)
        self.model, self.num_prompts = model, len(prompts)
        pixels = [
            to_vision_pixels(image.load(), model.cfg.vision.image_size, ref.fit or model.cfg.image_fit)
            for image, ref in zip(request.images, request.prompt.images, strict=True)
        ]
        self.pixels = [torch.from_numpy(one)[None].to(device, encoder.dtype) for one in pixels]

    @torch.no_grad()
    def __call__(self) -> object:
        """Run vision tower, resampler, MLLM and AlignerNet."""

        def see() -> torch.Tensor:
            return torch.cat([self.model.see(one) for one in self.pixels]).repeat(self.num_prompts, 1, 1)

        return self.model.encode(self.tokens, self.token_mask, self.image_mask, see if self.pixels else None)
