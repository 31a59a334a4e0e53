"""Images per second: from requests to images, against diffusers' own pipeline with the same embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from kgcli.inference.denoise import denoise, make_scheduler, seeded
from kgcli.inference.fast_decoder import channels_last
from kgcli.inference.request import Request
from kgcli.runtime import peak_memory
from kgcli.speed.card import Card, spread
from kgcli.speed.clock import arithmetic, count_flops, device_name, ratio, take_turns

if TYPE_CHECKING:
    from kgcli.inference.model import Model


def bench_generate(model: Model, requests: Sequence[Request], repeats: int) -> Card:
    """Measure one batch of requests that differ in their seeds alone.

    Reported: the time of all images, against diffusers' StableDiffusionPipeline given the same embeddings, latents and
    layout of weights, and against generating them one by one.
    """
    from kgcli.inference.model import generate

    size = len(requests)
    calls: dict[str, Callable[[], object]] = {
        "kgcli": lambda: list(generate(model, requests, batch_size=size)),
        "diffusers": _bare(model, requests),
    }
    if size > 1:
        calls["one by one"] = lambda: list(generate(model, requests))
    taken = take_turns(calls, repeats, model.device)
    seconds = spread([times.wall for times in taken["kgcli"]])
    sampling = requests[0].sampling.over(model.folder.cfg.generation)
    results: dict[str, Any] = {
        "images_per_second": size / seconds["seconds"],
        **seconds,
        **arithmetic(_flops(model, requests), seconds["seconds"], model.device),
        "peak_memory_bytes": peak_memory(model.device),
        "against_diffusers": ratio(taken["kgcli"], taken["diffusers"]),
    }
    if size > 1:
        results["against_one_by_one"] = ratio(taken["one by one"], taken["kgcli"])
    settings = {
        "model": model.folder.name,
        "device": device_name(model.device),
        "dtype": model.dtype,
        "threads": model.threads,
        "compile": model.compiled,
        "batch_size": size,
        "size": f"{sampling.width}x{sampling.height}",
        "steps": sampling.num_inference_steps,
        "scheduler": sampling.scheduler,
        "repeats": repeats,
    }
    return Card("generate", settings, results)


def _bare(model: Model, requests: Sequence[Request]) -> Callable[[], object]:
    """Return diffusers' own pipeline on the same weights, embeddings and noise."""
    pipeline, size = model.pipeline, len(requests)
    sampling = requests[0].sampling.over(model.folder.cfg.generation)
    embeds, negative = (one.expand(size, -1, -1) for one in pipeline.encoder.encode_request(requests[0]))
    parts = {**pipeline.components, "scheduler": make_scheduler(sampling.scheduler, pipeline.decoder.scheduler_config)}
    bare = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    bare.set_progress_bar_config(disable=True)
    width, height = sampling.size

    def call() -> object:
        with channels_last(pipeline.decoder, model.compiled or size > 1):
            return bare(
                prompt_embeds=embeds.to(pipeline.dtype),
                negative_prompt_embeds=negative.to(pipeline.dtype),
                generator=seeded([request.seed for request in requests]),
                width=width,
                height=height,
                num_inference_steps=sampling.num_inference_steps,
                guidance_scale=sampling.guidance_scale,
                guidance_rescale=sampling.guidance_rescale,
            ).images

    return call


def _flops(model: Model, requests: Sequence[Request]) -> int:
    """Return the operations of denoising and decoding, from those of one and of two steps."""
    pipeline, sampling = model.pipeline, requests[0].sampling.over(model.folder.cfg.generation)
    embeds, negative = (one.expand(len(requests), -1, -1) for one in pipeline.encoder.encode_request(requests[0]))

    def of_steps(steps: int) -> int:
        shorter = sampling.model_copy(update={"num_inference_steps": steps})
        generators = seeded([request.seed for request in requests])
        return count_flops(lambda: denoise(pipeline.sd, pipeline.decoder, embeds, negative, generators, shorter))

    with torch.compiler.set_stance("force_eager"):
        first, second = of_steps(1), of_steps(2)
    return first + ((sampling.num_inference_steps or 1) - 1) * (second - first)
