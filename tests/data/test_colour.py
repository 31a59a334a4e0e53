"""Colours of images with an ICC profile: what a person sees is what the model gets."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from kgcli.data.images import open_image

COLOURS = np.zeros((32, 32, 3), np.uint8)
COLOURS[:16, :16], COLOURS[:16, 16:] = (220, 40, 40), (40, 200, 60)
COLOURS[16:, :16], COLOURS[16:, 16:] = (50, 60, 210), (240, 230, 40)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def matrix_profile(red, green, blue, gamma):
    """A version 2 profile of three primaries, as seen under D50."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + b"\0" * 79
    tags = [(b"desc", name), (b"cprt", b"text\0\0\0\0none\0\0\0\0"), (b"wtpt", xyz((0.9642, 1.0, 0.8249)))]
    tags += [(b"rXYZ", xyz(red)), (b"gXYZ", xyz(green)), (b"bXYZ", xyz(blue))]
    tags += [(kind, curve) for kind in (b"rTRC", b"gTRC", b"bTRC")]
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for kind, data in tags:
        data += b"\0" * (-len(data) % 4)
        table += kind + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acspAPPL" + b"\0" * 24
    head += struct.pack(">3i", round(0.9642 * 65536), 65536, round(0.8249 * 65536)) + b"\0" * 48
    return head + struct.pack(">I", len(tags)) + table + body


PROFILES = {
    "adobe": matrix_profile(
        (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457), 2.19921875
    ),
    "p3": matrix_profile((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407), 2.2),
}


def error(image, wanted):
    return float(np.abs(np.asarray(image).astype(int) - np.asarray(wanted).astype(int)).mean())


@pytest.mark.parametrize("suffix, within", [("png", 1.0), ("jpg", 3.0)])
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_converted_to_srgb(tmp_path, name, suffix, within):
    profile = ImageCms.ImageCmsProfile(io.BytesIO(PROFILES[name]))
    stored = ImageCms.profileToProfile(Image.fromarray(COLOURS), SRGB, profile)
    seen = ImageCms.profileToProfile(stored, profile, SRGB)
    path = tmp_path / f"image.{suffix}"
    stored.save(path, icc_profile=PROFILES[name], quality=95, subsampling=0)
    assert error(open_image(path), seen) <= within < error(open_image(path, srgb=False), seen)


def test_alpha_and_palettes_keep_their_place(tmp_path):
    profile = ImageCms.ImageCmsProfile(io.BytesIO(PROFILES["p3"]))
    seen = ImageCms.profileToProfile(Image.fromarray(COLOURS), profile, SRGB)
    clear = Image.fromarray(COLOURS).convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(np.arange(32) < 16, 255, 0).astype(np.uint8)[None].repeat(32, 0)))
    clear.save(tmp_path / "clear.png", icc_profile=PROFILES["p3"])
    shown = np.asarray(open_image(tmp_path / "clear.png"))
    assert (shown[:, 16:] == 255).all() and error(shown[:, :16], np.asarray(seen)[:, :16]) <= 1
    Image.fromarray(COLOURS).quantize(8).save(tmp_path / "few.png", icc_profile=PROFILES["p3"])
    assert error(open_image(tmp_path / "few.png"), seen) <= 1


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_is_srgb_or_of_another_kind_stays_bit_for_bit(tmp_path, mode):
    image = Image.fromarray(COLOURS).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=SRGB.tobytes() if mode == "RGB" else PROFILES["p3"])
    assert error(open_image(tmp_path / "a.png"), image.convert("RGB")) == 0


def test_a_damaged_profile_is_said_and_left_aside(tmp_path, caplog):
    Image.fromarray(COLOURS).save(tmp_path / "a.png", icc_profile=b"garbage" * 20)
    assert error(open_image(tmp_path / "a.png"), COLOURS) == 0
    assert "colour profile of" in caplog.text and "is damaged" in caplog.text


def test_a_second_image_of_a_phone_is_no_animation(tmp_path, caplog):
    first, second = Image.fromarray(COLOURS), Image.new("RGB", (32, 32))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=95, subsampling=0)
    assert error(open_image(tmp_path / "a.jpg"), COLOURS) < 6
    assert "animated" not in caplog.text
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    open_image(tmp_path / "a.gif")
    assert "animated" in caplog.text
