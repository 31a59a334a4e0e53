"""Laws of the frozen image decoder."""

import pytest
import torch
from tiny_model import CONFIG, make_diffusion

from kgcli.errors import IncompatibleError, MissingError
from kgcli.model.randomness import StepRandom
from kgcli.weights.decoder import load_decoder


def make_inputs(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, 4, 4, 4, generator=generator)
    return latents, torch.randn(batch, CONFIG.aligner.num_queries, CONFIG.aligner.width, generator=generator)


def seeded(seed=0):
    return StepRandom(seed, 0, [0, 1])


@pytest.fixture
def diffusion():
    return make_diffusion()


@pytest.fixture
def folder(diffusion, tmp_path):
    diffusion.unet.save_pretrained(tmp_path / "unet")
    diffusion.vae.save_pretrained(tmp_path / "vae")
    diffusion.noise_scheduler.save_pretrained(tmp_path / "scheduler")
    return tmp_path


def test_the_gradient_passes_through_the_frozen_decoder_into_the_conditioning(diffusion):
    latents, conditioning = make_inputs()
    diffusion.noise_loss(latents, conditioning.requires_grad_(), random=seeded()).backward()
    assert conditioning.grad is not None and conditioning.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in diffusion.parameters())


def test_the_same_randomness_gives_the_same_loss(diffusion):
    latents, conditioning = make_inputs()
    losses = [diffusion.noise_loss(latents, conditioning, random=seeded(seed)).item() for seed in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


def test_noise_needs_randomness(diffusion):
    with pytest.raises(AssertionError, match="give random"):
        diffusion.noise_loss(*make_inputs())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_the_schedule_predicts(prediction_type):
    diffusion = make_diffusion(prediction_type=prediction_type)
    latents, conditioning = make_inputs()
    noise, timesteps = torch.randn_like(latents), torch.tensor([3, 700])
    kept = diffusion.noise_scheduler.alphas_cumprod[timesteps][:, None, None, None]
    signal, noise_scale = kept.sqrt(), (1 - kept).sqrt()
    targets = {"epsilon": noise, "v_prediction": signal * noise - noise_scale * latents, "sample": latents}
    prediction = diffusion.unet(signal * latents + noise_scale * noise, timesteps, conditioning).sample
    expected = (prediction - targets[prediction_type]).square().mean()
    loss = diffusion.noise_loss(latents, conditioning, noise_BCHW=noise, timesteps_B=timesteps)
    torch.testing.assert_close(loss, expected)


def test_a_zero_snr_schedule_ends_in_pure_noise():
    scheduler = make_diffusion(prediction_type="v_prediction", rescale_betas_zero_snr=True).noise_scheduler
    latents, noise, last = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4), torch.tensor([999])
    torch.testing.assert_close(scheduler.add_noise(latents, noise, last), noise)
    torch.testing.assert_close(scheduler.get_velocity(latents, noise, last), -latents)


def test_weights_multiply_the_error_of_their_places(diffusion):
    latents, conditioning = make_inputs()
    given = {"noise_BCHW": torch.randn_like(latents), "timesteps_B": torch.tensor([3, 700])}
    left = torch.zeros(2, 4, 4)
    left[:, :, :2] = 1
    whole, halves = diffusion.noise_loss(latents, conditioning, **given), 0
    for weight in (left, 1 - left):
        halves += diffusion.noise_loss(latents, conditioning, **given, weight_BHW=weight)
    torch.testing.assert_close(halves, whole)


def test_cached_moments_give_the_latents_of_their_image(diffusion):
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    direct = diffusion.latents(pixels, random=seeded())
    assert torch.equal(diffusion.sample_latents(*diffusion.moments(pixels), random=seeded()), direct)
    images = diffusion.decode(direct)
    assert images.shape == pixels.shape
    assert images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_diffusers_folder_loads_as_what_was_saved(diffusion, folder, dtype):
    loaded = load_decoder(folder, dtype=dtype)
    assert loaded.unet.dtype == loaded.vae.dtype == dtype
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    if dtype == torch.float32:
        latents, conditioning = make_inputs()
        given = {"noise_BCHW": latents.flip(0), "timesteps_B": torch.tensor([3, 700])}
        assert torch.equal(
            loaded.noise_loss(latents, conditioning, **given), diffusion.noise_loss(latents, conditioning, **given)
        )


def test_weights_stored_in_half_precision_alone_are_found(diffusion, folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    diffusion.unet.save_pretrained(folder / "unet", variant="fp16")
    assert load_decoder(folder).unet.dtype == torch.float32


@pytest.mark.parametrize(
    "name",
    [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    ],
)
@pytest.mark.parametrize("fault", ["absent", "cut"])
def test_a_missing_or_damaged_file_is_one_clear_error(folder, name, fault):
    path = folder / name
    content = path.read_bytes()
    path.unlink() if fault == "absent" else path.write_bytes(content[: len(content) // 2])
    with pytest.raises(MissingError, match=f"the decoder's {name.partition('/')[0]}") as caught:
        load_decoder(folder, local_files_only=True)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingError, match="there is no decoder folder"):
        load_decoder(tmp_path / "absent")


def test_weights_of_another_size_are_refused(folder):
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace('"latent_channels": 4', '"latent_channels": 8'))
    with pytest.raises(IncompatibleError, match="the decoder's vae"):
        load_decoder(folder)


def test_conditioning_of_another_width_is_refused(diffusion):
    diffusion.check_conditioning(CONFIG.aligner.width)
    with pytest.raises(IncompatibleError, match="width 16, this model makes 768"):
        diffusion.check_conditioning(768)
