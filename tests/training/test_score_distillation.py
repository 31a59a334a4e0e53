"""The paper's claim that the diffusion loss distils the U-Net's score: the gradient of a surrogate without its target.

KOSMOS-G (arXiv:2310.02992), section 2.3: equation 8 is the diffusion loss |eps - eps_hat(z, t, C)|^2, and equation 9
its gradient (eps_hat - eps) . d eps_hat / dC . dC / d theta up to a factor.
"""

import pytest
import torch
from tiny_model import make_diffusion, make_model, make_prompts

from kgcli.model.randomness import StepRandom

STEPS = (3, 500, 990)  # timesteps of the three prompts


@pytest.fixture(scope="module")
def given():
    """Model, diffusion, prompts, latents and noise, in double precision."""
    model, diffusion = make_model().double(), make_diffusion().double()
    tokens, token_mask, image_mask, images = make_prompts()
    random = StepRandom(0, 0, [0, 1, 2])
    latents, noise = random.normal(4, 4, 4).double(), random.normal(4, 4, 4).double()
    return model, diffusion, (tokens, token_mask, image_mask, images.double()), latents, noise


def gradient_of(model, value):
    """The gradient of a value in all weights of the prompt encoder, as one vector."""
    gradients = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    assert any(gradient is not None for gradient in gradients)
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def predictions(given):
    model, diffusion, prompts, latents, noise = given
    timesteps = torch.tensor(STEPS)
    noisy = diffusion.noise_scheduler.add_noise(latents, noise, timesteps)
    conditioning = model.encode(*prompts)
    return conditioning, diffusion.unet(noisy, timesteps, conditioning).sample


def test_the_surrogate_has_the_gradient_of_the_diffusion_loss(given):
    model, diffusion, prompts, latents, noise = given
    loss = diffusion.noise_loss(
        latents, model.encode(*prompts), noise_BCHW=noise, timesteps_B=torch.tensor(STEPS)
    )  # of the instruct stage
    expected = gradient_of(model, loss)
    _, predicted = predictions(given)
    factor = 2 / predicted.numel()  # of the square, and of the mean over latents and batch
    found = factor * gradient_of(model, ((predicted - noise).detach() * predicted).sum())
    assert expected.norm() > 0
    assert (found - expected).norm() < 1e-5 * expected.norm()  # parts of the model compute in fp32


def test_equation_9_is_the_residual_through_both_jacobians(given):
    model, _, _, _, noise = given
    conditioning, predicted = predictions(given)
    residual = (predicted - noise).detach()
    (through_unet,) = torch.autograd.grad(predicted, conditioning, residual, retain_graph=True)
    assert through_unet.shape == conditioning.shape != residual.shape
    by_hand = gradient_of(model, (through_unet.detach() * conditioning).sum())
    _, again = predictions(given)
    whole = gradient_of(model, (residual * again).sum())
    assert (by_hand - whole).norm() < 1e-5 * whole.norm()


def test_without_the_jacobian_of_the_unet_the_product_of_equation_10_has_no_shape(given):
    conditioning, predicted = predictions(given)
    residual = (predicted - given[-1]).detach()
    assert residual[0].numel() != conditioning[0].numel()
    with pytest.raises(RuntimeError, match="(?i)shape"):
        torch.autograd.grad(conditioning, list(given[0].parameters()), residual, allow_unused=True)
