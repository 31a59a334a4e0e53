"""Laws of the vision tower."""

import torch
from tiny_model import CONFIG

from kgcli.model.vision import VisionTower


def test_every_token_has_unit_length_and_depends_on_its_own_image_alone():
    torch.manual_seed(0)
    tower, pixels = VisionTower(CONFIG.vision).eval(), torch.randn(3, 3, 16, 16)
    tokens = tower(pixels)
    assert tokens.shape == (3, 1 + (16 // 8) ** 2, CONFIG.vision.width)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(tokens.shape[:2]))
    torch.testing.assert_close(tower(pixels.flip(0)), tokens.flip(0))
