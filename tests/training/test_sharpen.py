"""Laws of what sharpens images: crops, stratified timesteps, the discriminator's stage, and the scores of a VAE."""

import pytest
import torch
from diffusers import AutoencoderKL

from kgcli.data.batch import Batch
from kgcli.errors import MissingError
from kgcli.evaluation.benchmarks import reconstruction
from kgcli.model.randomness import StepRandom
from kgcli.model.timesteps import HIGH_NOISE, LOW_NOISE, stratified_timesteps
from kgcli.recipe import load_recipe
from kgcli.training.stages import make_stage
from kgcli.training.stages.vae import random_crops


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    vae = AutoencoderKL.from_config({**load_recipe("smoke/vae").parts["vae"]})
    vae.save_pretrained(folder / "final" / "vae")
    return folder / "final"


@pytest.fixture
def stage(vae_folder):
    recipe = load_recipe("smoke/sharpen").model_copy(update={"init_from": {"vae": str(vae_folder)}})
    torch.manual_seed(1)
    stage = make_stage(recipe, lambda num, seed: [])
    stage.freeze()
    return stage


def images(num, size=64):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_a_crop_is_a_square_of_its_image_and_does_not_depend_on_the_other_images():
    whole = images(5)
    first = random_crops(whole, 16, StepRandom(0, 3, range(5)))
    second = torch.cat([random_crops(whole[i : i + 1], 16, StepRandom(0, 3, [i])) for i in range(5)])
    assert first.shape == (5, 3, 16, 16)
    assert torch.equal(first, second)
    for image, crop in zip(whole, first, strict=True):
        windows = image.unfold(1, 16, 1).unfold(2, 16, 1)  # (3, 49, 49, 16, 16)
        assert (windows == crop[:, None, None]).all((0, 3, 4)).sum() == 1
    assert random_crops(whole, 0, StepRandom(0, 3, range(5))) is whole


@pytest.mark.parametrize("low_noise", [0.0, 0.5])
def test_stratified_timesteps_spread_over_the_schedule(low_noise):
    steps = stratified_timesteps(StepRandom(0, 9, range(640, 704)), 1000, low_noise=low_noise)
    assert steps.shape == (64,)
    assert 0 <= steps.min() <= steps.max() < 1000
    rest = steps.sort().values
    if low_noise == 0.0:
        assert (rest * 64 / 1000 - torch.arange(64)).abs().max() <= 2.5  # nearly one in each part
    else:
        assert (steps < 1000 * LOW_NOISE).sum() == pytest.approx(32 + 32 * LOW_NOISE, abs=2)
    assert not torch.equal(steps, rest)
    parts = [
        stratified_timesteps(StepRandom(0, 9, range(640 + i, 704, 2)), 1000, low_noise=low_noise) for i in range(2)
    ]
    assert torch.equal(torch.stack(parts, 1).flatten(), steps)  # whichever process takes a sample


def test_stratified_timesteps_start_at_the_first_one_asked_for():
    steps = torch.cat([stratified_timesteps(StepRandom(0, i, range(64)), 1000, min_timestep=289) for i in range(50)])
    assert (steps.min(), steps.max()) == (289, 999)
    assert (steps < 289 + 711 / 2).float().mean() == pytest.approx(0.5, abs=0.02)


def test_high_noise_is_the_fraction_kept_to_the_end_of_the_schedule():
    def drawn(share):
        draws = (StepRandom(0, i, range(64)) for i in range(50))
        return torch.cat([stratified_timesteps(random, 1000, high_noise=share, min_timestep=100) for random in draws])

    at_the_end = [(drawn(share) >= 1000 * HIGH_NOISE).float().mean().item() for share in (0.0, 0.5, 1.0)]
    assert at_the_end == pytest.approx([2 / 9, 11 / 18, 1.0], abs=0.02)
    assert 100 <= drawn(0.5).min() <= 104 and drawn(0.5).max() == 999


def test_the_decoders_gradient_does_not_move_the_discriminator_nor_its_own_the_decoder(stage):
    losses = stage(Batch(targets=images(2)), StepRandom(0, 0, [0, 1]))
    assert set(losses) == {"pixels", "edges", "adversarial", "discriminator"}
    losses["adversarial"].backward(retain_graph=True)
    assert all(p.grad is None for p in stage.discriminator.parameters())
    assert all(p.grad is not None for p in stage.vae.decoder.parameters())
    stage.zero_grad(set_to_none=True)
    losses["discriminator"].backward()
    assert all(p.grad is not None for p in stage.discriminator.parameters())
    assert all(p.grad is None for p in stage.vae.parameters())


def test_latents_stay_and_the_result_is_a_plain_vae(stage, vae_folder, tmp_path):
    losses = stage(Batch(targets=images(2)), StepRandom(0, 0, [0, 1]))
    torch.stack(list(losses.values())).sum().backward()
    with torch.no_grad():
        for parameter in stage.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    stage.export(tmp_path)
    before, after = (AutoencoderKL.from_pretrained(folder / "vae") for folder in (vae_folder, tmp_path))
    pixels = images(2)
    latents = before.encode(pixels).latent_dist.mean
    assert torch.equal(latents, after.encode(pixels).latent_dist.mean)
    assert not torch.equal(before.decode(latents).sample, after.decode(latents).sample)


def test_a_perfect_copy_keeps_everything_and_a_blur_does_not():
    true = images(4)
    assert reconstruction.edge_ratio(true, true).tolist() == pytest.approx([1] * 4)
    assert reconstruction.laplacian_ratio(true, true).tolist() == pytest.approx([1] * 4)
    blurred = torch.nn.functional.avg_pool2d(true, 3, 1, 1)
    assert (reconstruction.edge_ratio(true, blurred) < 0.7).all()
    assert (reconstruction.laplacian_ratio(true, blurred) < 0.2).all()
    assert reconstruction.psnr(true, true + 0.02).tolist() == pytest.approx([40] * 4, abs=0.01)


def test_the_degree_of_a_style_goes_from_the_plain_image_to_the_styled_one():
    plain, styled = images(3), -images(3)
    for degree, rebuilt in ((0, plain), (1, styled), (0.5, (plain + styled) / 2)):
        assert reconstruction.style_kept(plain, styled, rebuilt).tolist() == pytest.approx([degree] * 3, abs=1e-5)


def test_a_vae_is_measured_on_new_instances_alone(vae_folder):
    specs = reconstruction.draw_specs(20, 0)
    assert all(placed.subject.identity >= 1_000_000 for spec in specs for placed in spec.subjects)
    measured = reconstruction.evaluate_vae(vae_folder, num=4)
    assert "PSNR (dB)" in str(measured)
    assert measured.estimates["psnr"].low <= measured.estimates["psnr"].value <= measured.estimates["psnr"].high
    assert all(f"style {name}" in measured.estimates for name in ("minecraft", "oil", "watercolor"))
    assert sum(measured.channel_effects) == pytest.approx(4)


def test_a_folder_without_a_vae_is_one_clear_error(tmp_path):
    with pytest.raises(MissingError, match="there is no VAE in"):
        reconstruction.evaluate_vae(tmp_path)


def test_low_noise_adds_to_the_beginning_of_the_schedule_and_takes_evenly_from_all_of_it():
    steps = torch.cat([stratified_timesteps(StepRandom(0, i, range(64)), 1000, low_noise=0.5) for i in range(50)])
    below, middle, above = (((steps >= a) & (steps < b)).float().mean() for a, b in ((0, 400), (400, 700), (700, 1000)))
    assert [below, middle, above] == pytest.approx([0.5 + 0.5 * LOW_NOISE, 0.15, 0.15], abs=0.01)
    assert (stratified_timesteps(StepRandom(0, 0, range(64)), 1000, low_noise=1.0) < 1000 * LOW_NOISE).all()
