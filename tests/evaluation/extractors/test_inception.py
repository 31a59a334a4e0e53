import sys
import warnings

import numpy as np
import pytest
import torch
from cleanfid.resize import make_resizer
from PIL import Image
from random_inception import write_random_inception
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from kgcli.errors import IncompatibleError, UsageError
from kgcli.evaluation.extractors.inception import (
    PIXEL_PATHS,
    PRESETS,
    CleanInception,
    InceptionExtractor,
    TorchFidelityInception,
    clean_299,
    native,
    pil_256,
    preset,
    tensor_256,
)
from kgcli.evaluation.extractors.weight_files import Weights


def make_image(size=(320, 270), seed=0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 6, size[0] // 6, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_random_inception(tmp_path_factory.mktemp("inception"))


@pytest.fixture(scope="module")
def networks(files):
    return {"inception": TorchFidelityInception(files["inception"]), "clean": CleanInception(files["inception-clean"])}


def test_the_published_crop_is_torchs_bilinear_truncated():
    """Floats of [0, 1] by F.interpolate without antialias, the middle, and the bytes below."""
    image = make_image()
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(pixels, (256, 303), mode="bilinear", align_corners=False)
    expected = (resized[0, :, :, 24:280] * 255).byte()  # (303 - 256) / 2 = 23.5, which torchvision rounds to 24
    assert torch.equal(tensor_256(image), expected)
    rounded = (resized[0, :, :, 24:280] * 255).round().byte()
    assert not torch.equal(expected, rounded)


def test_the_plain_crop_is_pillows_bicubic():
    image = make_image()
    expected = np.asarray(image.resize((303, 256), Image.Resampling.BICUBIC).crop((24, 0, 280, 256)))
    assert np.array_equal(pil_256(image).permute(1, 2, 0).numpy(), expected)
    square = make_image((512, 512))
    assert np.array_equal(
        pil_256(square).permute(1, 2, 0).numpy(), np.asarray(square.resize((256, 256), Image.Resampling.BICUBIC))
    )


def test_native_bytes_are_what_truncation_of_their_floats_gives():
    image = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    floats = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    assert torch.equal(native(image), (floats * 255).byte())


def test_clean_resizes_as_clean_fid_does():
    image = make_image()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = make_resizer("PIL", False, "bicubic", (299, 299))(np.array(image))
    ours = clean_299(native(image)).permute(1, 2, 0).numpy()
    assert ours.dtype == np.float32 and np.array_equal(ours, expected)


@pytest.mark.slow
def test_the_others_resize_as_tensorflow_1_did(networks):
    """What the first convolution gets is torch-fidelity's own resize, without antialias."""
    seen = []
    network = networks["inception"]._network
    hook = network.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    networks["inception"](native(make_image()))
    hook.remove()
    pixels = native(make_image())[None].float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(299, 299), align_corners=False)
    assert torch.equal(seen[0], (expected - 128) / 128)


@pytest.mark.slow
def test_both_wrappers_run_one_network(networks):
    """The same weights on pixels of 299, where nothing is resized, give the same features."""
    pixels = native(make_image((299, 299)))
    with torch.inference_mode():
        one, other = networks["inception"](pixels), networks["clean"](pixels)
    assert one.shape == other.shape == (2048,) and float(one.std()) > 0.01
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_row_does_not_depend_on_its_neighbours(networks):
    extractor = InceptionExtractor(networks["inception"], tensor_256)
    both = extractor.images([make_image(seed=0), make_image(seed=1)])
    assert both.shape == (2, 2048)
    assert np.array_equal(extractor.images([make_image(seed=1)])[0], both[1])


def test_presets_differ_in_what_the_protocol_says():
    facts = {name: [PIXEL_PATHS[side] for side in (one.real, one.fake)] for name, one in PRESETS.items()}
    assert facts["kosmosg"][0] == facts["kosmosg-rescore"][0] == facts["kosmosg-rescore"][1]
    assert facts["kosmosg"][1] == facts["clean"][1] == "native size"
    assert facts["legacy256"][0] == facts["legacy256"][1] == facts["clean"][0]
    assert preset("clean").weights == "inception-clean"
    with pytest.raises(UsageError, match="kosmosg-rescore"):
        preset("fid")


@pytest.mark.slow
def test_other_files_are_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(IncompatibleError, match="does not hold torch-fidelity's Inception"):
        TorchFidelityInception(Weights(tmp_path / "a.pth", ""))
    (tmp_path / "inception-2015-12-05.pt").write_bytes(b"no")
    with pytest.raises(IncompatibleError, match="does not hold a TorchScript"):
        CleanInception(Weights(tmp_path / "inception-2015-12-05.pt", ""))


@pytest.mark.slow
def test_random_files_say_so(files):
    assert {one.sha256 for one in files.values()} == {"random-0"}
    assert "tensorflow" not in sys.modules
