"""Every tensor that the published code computed on tiny models, held against ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import golden
import pytest
import torch
from golden import check_case, has_prefix, load_diffusion, load_model, settings
from safetensors.torch import load_file
from torch import Tensor, nn

from kgcli.data.tokenizer import Tokenizer
from kgcli.inference.denoise import make_scheduler
from kgcli.inference.pipeline import KosmosGPipeline
from kgcli.model.kosmosg import KosmosG
from kgcli.weights.names import is_dropped, to_published, vision_from_open_clip

CONDITION_DROP_RATE = 0.1  # as published; no setting of the golden data
SAMPLER_NAMES = ("dpm++", "ddim", "pndm", "euler", "unipc")
NO_TOKENIZER = cast(Tokenizer, None)  # golden prompts are token ids already
PROMPT_INPUTS = {"src_tokens", "img_mask", "pixel_values"}


def check_vision(path: Path) -> None:
    """The tower, before and after its tokens are brought to unit length, and the resampler."""
    model, pixels = load_model("final"), load_file(path)["pixel_values"]
    with torch.no_grad():
        tokens = model.vision(pixels)
        computed = {
            "vision_hidden": tokens,
            "vision_hidden_before_l2norm": model.vision.tokens(pixels),
            "connector_out": model.resampler(tokens),
        }
    check_case(path, computed, {"pixel_values"})


def check_mllm(path: Path) -> None:
    """From token ids and pictures to the conditioning, with what lies between."""
    model, case = load_model("final"), load_file(path)
    tokens, token_mask, image_mask, images = read_prompt(case)
    layers = [record_output(layer) for layer in model.mllm.stack.layers]
    with torch.no_grad():
        embeddings = model.embed(tokens, image_mask, images)
        hidden = model.hidden(tokens, token_mask, image_mask, images)
        computed = {
            "input_embeddings": model.mllm.positioned(embeddings, token_mask),
            "final_hidden": hidden,
            "logits": model.mllm.logits(hidden),
            "padding_mask": ~token_mask,
            "aligner_memory": model.aligner.encoder.memory(hidden, token_mask),
            "condition": model.encode(tokens, token_mask, image_mask, images),
        }
    computed |= {f"layer_{index}_hidden": outputs[0] for index, outputs in enumerate(layers)}
    check_case(path, computed, PROMPT_INPUTS)


def check_null(path: Path) -> None:
    """The conditioning of no prompt."""
    model, tokens = load_model("final"), load_file(path)["src_tokens"]
    assert tokens.tolist() == [[model.cfg.special_ids.bos]]
    token_mask = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        computed = {
            "final_hidden": model.hidden(tokens, token_mask, ~token_mask),
            "null_condition": model.encode_null(),
        }
    check_case(path, computed, {"src_tokens"})


def check_guidance(path: Path) -> None:
    """The U-Net's batch: what to lead away from, then the tiled conditions."""
    with torch.no_grad():
        computed = {"condition": guidance_batch(load_model("final"), load_file(path))}
    check_case(path, computed, PROMPT_INPUTS | {"negative_tokens", "num_images_per_prompt"})


def check_align(path: Path) -> None:
    """The alignment stage's losses, and their gradient in the aligner."""
    model, case = load_model("align"), load_file(path)
    tokens, token_mask, image_mask, images = read_prompt(case)
    with torch.no_grad():
        hidden = model.hidden(tokens, token_mask, image_mask, images)
    aligned = model.aligner.encode(hidden, token_mask)
    num_tokens = tokens.shape[1]
    reconstruction = model.aligner.decode(aligned, num_tokens)
    mse_loss = (aligned - case["clip_target"]).square().mean()
    rec_loss = (reconstruction - hidden).square().mean() * aligned.shape[1] / num_tokens
    loss = mse_loss + rec_loss
    loss.backward()
    assert model.aligner.decoder is not None
    computed = {
        "aligned": aligned,
        "decoder_out": model.aligner.decoder.read(aligned, num_tokens),
        "reconstruction": reconstruction,
        "mse_loss": mse_loss,
        "rec_loss": rec_loss,
        "loss": loss,
    }
    check_case(path, computed | published_gradients(model), PROMPT_INPUTS | {"clip_target"})


def check_train_diffusion(path: Path) -> None:
    """One instruction-tuning step with every draw given."""
    model, diffusion, case = load_model("final"), load_diffusion(), load_file(path)
    condition = model.encode(*read_prompt(case))
    dropped = case["drop_uniform"] < CONDITION_DROP_RATE
    condition = torch.where(dropped[:, None, None], model.encode_null(), condition)
    latents = diffusion.latents(case["target_images"], eps_BCHW=case["vae_eps"])
    noise, timesteps = case["noise"], case["timesteps"]
    noisy = diffusion.noise_scheduler.add_noise(latents, noise, timesteps)
    loss = diffusion.noise_loss(latents, condition, noise_BCHW=noise, timesteps_B=timesteps)
    loss = loss * len(latents)  # the published loss is a sum over the batch, divided later
    loss.backward()
    computed = {
        "latents": latents,
        "noisy_latents": noisy,
        "condition_after_dropout": condition,
        "noise_pred": diffusion.predict(noisy, timesteps, condition),
        "diff_loss": loss,
    }
    inputs = PROMPT_INPUTS | {"target_images", "vae_eps", "noise", "timesteps", "drop_uniform"}
    check_case(path, computed | published_gradients(model), inputs)


def check_sample(path: Path) -> None:
    """Whole pictures, by the diffusers pipeline that ours hands its conditioning to, with the samplers we offer."""
    case, diffusion, model = load_file(path), load_diffusion(), load_model("final")
    pipeline = KosmosGPipeline(model, NO_TOKENIZER, diffusion)
    with torch.no_grad():
        condition = guidance_batch(model, case)
    computed = {"condition": condition}
    negative, positive = condition.chunk(2)
    for name, scheduler in samplers().items():
        pipeline.sd.scheduler = scheduler
        latents = pipeline.sd(
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            latents=case["latents"].clone(),
            height=8,  # any multiple of 8: the given latents decide
            width=8,
            num_inference_steps=settings()["sampling"]["num_inference_steps"],
            guidance_scale=settings()["sampling"]["guidance_scale"],
            output_type="latent",
        ).images
        computed[f"{name}_timesteps"] = scheduler.timesteps
        computed[f"{name}_final_latents"] = latents
        computed[f"{name}_image"] = diffusion.decode(latents).permute(0, 2, 3, 1)
    check_case(path, computed, PROMPT_INPUTS | {"negative_tokens", "num_images_per_prompt", "latents"})


def check_clip_visual(path: Path) -> None:
    """A CLIP file with fused attention, against what the published model holds after loading it."""
    if "split" in path.stem:
        path = path.with_name(path.name.replace("split", "fused"))
    assert path.is_file(), f"{path.name} is missing: fused and split files come in pairs"
    tower = vision_from_open_clip(load_file(path))
    ours = to_published({f"vision.{name}": tensor for name, tensor in tower.items()})
    check_case(path.with_name(path.name.replace("fused", "split")), ours, set())


def check_weights(path: Path) -> None:
    """Published names to ours and back give the same file, and every tensor finds its place in the model."""
    name = path.stem.removesuffix("_weights")
    ours = to_published(load_model(name).state_dict())
    unused = {key for key in load_file(path) if is_dropped(key)}
    check_case(path, ours, unused)


# A file belongs to the longest prefix that fits it; a file that belongs to none fails.
CHECKS: dict[str, Callable[[Path], None]] = {
    "vision": check_vision,
    "mllm": check_mllm,
    "null": check_null,
    "cfg": check_guidance,
    "align": check_align,
    "train_diffusion": check_train_diffusion,
    "sample": check_sample,
    "clip_visual": check_clip_visual,
    "align_weights": check_weights,
    "final_weights": check_weights,
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' DPM-Solver, numpy 2
@pytest.mark.parametrize("path", golden.tiny_files("*.safetensors"), ids=lambda path: path.stem)
def test_every_tensor_of_a_case_is_ours(path: Path) -> None:
    kinds = [prefix for prefix in CHECKS if has_prefix(path.stem, prefix)]
    assert kinds, f"{path.name} is of no known kind ({', '.join(CHECKS)})"
    CHECKS[max(kinds, key=len)](path)


@pytest.mark.parametrize("kind", CHECKS)
def test_a_folder_holds_every_kind_of_case(kind: str) -> None:
    found = [path for path in golden.tiny_files("*.safetensors") if has_prefix(path.stem, kind)]
    if not found and golden.FOLDER != Path(__file__).parent / "fixtures":
        pytest.skip(f"{golden.FOLDER} holds no {kind} case")
    assert found


def read_prompt(case: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Tokens, which of them are real, which are image slots, and the pictures if there are any."""
    tokens = case["src_tokens"]
    image_mask = case.get("img_mask", torch.zeros_like(tokens)).bool()
    return tokens, tokens != settings()["special_ids"]["pad"], image_mask, case.get("pixel_values")


def guidance_batch(model: KosmosG, case: dict[str, Tensor]) -> Tensor:
    """Null or negative condition once per picture, then the conditions tiled: c0, c1, c0, c1."""
    condition = model.encode(*read_prompt(case))
    tokens = case["negative_tokens"]
    if tokens.shape[1] > 1:
        token_mask = tokens != settings()["special_ids"]["pad"]
        negative = model.encode(tokens, token_mask, torch.zeros_like(token_mask))
    else:
        negative = model.encode_null()
    tiled = condition.repeat(int(case["num_images_per_prompt"]), 1, 1)
    return torch.cat([negative.repeat(len(tiled) // len(negative), 1, 1), tiled])


def samplers() -> dict[str, Any]:
    """The samplers of the settings, by their names there, made as for a decoder with these noise settings."""
    offered = {type(make_scheduler(name, {})).__name__: name for name in SAMPLER_NAMES}
    made = {}
    for name, entry in settings()["sampling"].items():
        if isinstance(entry, dict):
            noise = {key: value for key, value in entry.items() if key not in ("class_name", "note")}
            if noise.get("final_sigmas_type") == "sigma_min":
                del noise["final_sigmas_type"]  # no decoder says so; ours must by itself
            made[name] = make_scheduler(offered[entry["class_name"]], noise)
    return made


def published_gradients(model: KosmosG) -> dict[str, Tensor]:
    """Each gradient under its published name."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {f"grad.{name}": gradient for name, gradient in to_published(gradients).items()}


def record_output(module: nn.Module) -> list[Tensor]:
    """A list that each forward of a module adds its output to."""
    outputs: list[Tensor] = []
    module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    return outputs
