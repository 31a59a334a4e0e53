"""Safe opening of untrusted image files, and the two transforms: vision tower and VAE.

An image that is not square is cropped about its centre by the transforms (as the published model does);
`pad_to_square` keeps all of it instead, and the fit "stretch" changes its proportions (as Kosmos-2 does).
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import io
import logging
import os
import struct
import warnings
import zlib
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from kgcli.data.colour import to_srgb
from kgcli.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # no EPS or PDF: those start other programs
MAX_PIXELS = 64_000_000  # width x height, checked before decoding; 192 MB as RGB
MAX_BYTES = 256 * 2**20  # of the file
MAX_ASPECT = 50  # longer side / shorter side
MAX_PADDED_SIDE = 4096  # pixels; a longer image is made smaller before it is padded
MAX_LISTED = 10_000  # names of a folder among which the nearest is looked for
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # Source: CLIP (arXiv:2103.00020)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)  # mean and deviation of a VAE's pixels: they end in [-1, 1]
WHITE = (255, 255, 255)

# Exceptions that Pillow's decoders raise on damaged input.
DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError),
    *(struct.error, zlib.error),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFile:
    """An opened image file, identified by its path and hash."""

    path: Path
    name: str  # base name of the file
    sha256: str  # of the file's bytes
    image: Image.Image | None = field(repr=False, compare=False)  # None to save memory: the file is read again

    def load(self) -> Image.Image:
        """Return the image as upright RGB.

        Raises: ImageError if the file has changed since it was first opened.
        """
        if self.image is not None:
            return self.image
        again = read_image(self.path)
        if again.sha256 != self.sha256 or again.image is None:
            raise ImageError(f"{self.path} has changed while it was in use; start again")
        return again.image

    def without_pixels(self) -> ImageFile:
        """Return the same image without its pixels, to be read again when needed."""
        return replace(self, image=None)


def open_image(path: str | Path, *, srgb: bool = True) -> Image.Image:
    """Read a file as an upright RGB image: transparency on white, the first frame of an animation.

    Colours are converted to sRGB if the file has a profile, unless `srgb` is off: published evaluations ignore it.

    Raises: ImageError if the file is missing, is not an image, is damaged or is too large.
    """
    return read_image(path, srgb=srgb).load()


def read_image(path: str | Path, *, srgb: bool = True) -> ImageFile:
    """Read an image as `open_image` does, with the file's base name and hash.

    Raises: ImageError, as `open_image`.
    """
    path = Path(path)
    data = _read_bytes(path)
    return ImageFile(path, path.name, hashlib.sha256(data).hexdigest(), decode_image(data, str(path), srgb=srgb))


def decode_image(data: bytes, name: str = "image", *, srgb: bool = True) -> Image.Image:
    """Decode the bytes of an image file, as `open_image` does; `name` is for messages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about what is checked here
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:
            raise ImageError(
                f"{name} is too large: more than {MAX_PIXELS // 10**6} megapixels; make it smaller"
            ) from None
        except DECODER_ERRORS:
            raise ImageError(f"{name} is not an image in a supported format ({', '.join(FORMATS)})") from None
        _check_size(image.size, name)  # before anything is decoded
        try:
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a phone's depth map is not an animation
                _log.warning("%s is animated: its first frame is used", name)
                image.seek(0)
        except DECODER_ERRORS as error:
            raise ImageError(f"{name} is damaged or cut short: {_one_line(error)}") from None
        found = _upright_rgb(image, name, srgb=srgb)
        is_open = any(getattr(found, name, None) is not None for name in ("fp", "_fp", "_decoder"))
        return found.copy() if is_open else found  # without the file's bytes, which formats of several frames keep


def upright_rgb(image: Image.Image, name: str = "the image", *, srgb: bool = True) -> Image.Image:
    """Convert an opened image as `open_image` does; the image given stays the caller's own.

    Raises: ImageError if it is too large or cannot be decoded.
    """
    _check_size(image.size, name)
    found = _upright_rgb(image, name, srgb=srgb)
    return found.copy() if found is image else found


def _upright_rgb(image: Image.Image, name: str, *, srgb: bool) -> Image.Image:
    """Return an opened image as upright RGB; the image itself where it is that already."""
    try:
        image.load()
        profile = image.info.get("icc_profile")
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)  # which copies an upright one
        if srgb and profile:
            image = to_srgb(image, profile, name)
        return _to_rgb(image, name)
    except DECODER_ERRORS as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name} is damaged or cut short: {_one_line(error)}") from None


def pad_to_square(image: Image.Image) -> Image.Image:
    """Pad an image to a white square, the image in its centre."""
    if image.width == image.height:
        return image
    if max(image.size) > MAX_PADDED_SIDE:
        image = image.copy()
        image.thumbnail((MAX_PADDED_SIDE, MAX_PADDED_SIDE))
    side = max(image.size)
    square = Image.new("RGB", (side, side), WHITE)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def square(image: Image.Image, fit: str) -> Image.Image:
    """Make an image square by the `fit` of its tag; without one, the model resizes it."""
    if fit == "pad":
        return pad_to_square(image)
    side = min(image.size)
    if fit == "crop":
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side))
    return image.resize((side, side), Image.Resampling.BICUBIC) if fit == "stretch" else image


def to_vision_pixels(image: Image.Image, size: int, fit: str = "crop") -> NDArray[np.float32]:
    """Convert an image for the vision tower: bicubic, made square by `fit` (crop, pad or stretch), CLIP normalisation.

    Shapes:
        returns: (3, size, size)
    """
    return _normalise(to_vision_square(image, size, fit), CLIP_MEAN, CLIP_STD)


def to_vision_square(image: Image.Image, size: int, fit: str = "crop") -> Image.Image:
    """Return the square that `to_vision_pixels` shows the vision tower, as an image."""
    if fit == "stretch":
        return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)
    whole = pad_to_square(image) if fit == "pad" else image
    return _resize_and_crop(whole, size, Image.Resampling.BICUBIC)


def to_square(image: Image.Image, size: int) -> Image.Image:
    """Return the square that `to_vae_pixels` shows the VAE, as an image."""
    return _resize_and_crop(image, size, Image.Resampling.BILINEAR)


def to_vae_pixels(image: Image.Image, size: int) -> NDArray[np.float32]:
    """Convert an image for the VAE: bilinear, centre crop, in [-1, 1].

    Shapes:
        returns: (3, size, size)
    """
    return _normalise(to_square(image, size), HALF, HALF)


def _resize_and_crop(image: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """Resize the shorter side to `size`, the longer truncated to int, and crop the centre square.

    An image that is this square already is returned itself.
    """
    width, height = image.size
    shorter, longer = min(width, height), max(width, height)
    resized_longer = int(size * longer / shorter)
    resized = (size, resized_longer) if width <= height else (resized_longer, size)
    if image.size != resized:
        image = image.resize(resized, resampling)
    if resized_longer == size:
        return image
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)  # Python's rounding: half to even
    return image.crop((left, top, left + size, top + size))


def to_uint8(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of a square, (3, size, size), for a device to normalise by `normalised_values`."""
    pixels = np.empty((3, image.height, image.width), np.uint8)
    write_pixels(image, pixels)
    return pixels


def write_pixels(image: Image.Image, pixels_3SS: NDArray[np.uint8]) -> None:
    """Write the pixels of a square into an array."""
    for plane, band in zip(pixels_3SS, image.split(), strict=True):
        plane[:] = np.asarray(band)


@functools.cache
def normalised_values(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """Return what each of the 256 values of each channel becomes, (3, 256).

    Normalised in float64, then cast to float32, as in the published code.
    """
    values = np.arange(256, dtype=np.float64)[:, None] / 255.0
    table = np.ascontiguousarray(((values - mean) / std).T.astype(np.float32))
    table.setflags(write=False)
    return table


def _normalise(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    pixels, table = to_uint8(image), normalised_values(mean, std)
    return np.stack([values[channel] for values, channel in zip(table, pixels, strict=True)])


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder, not an image")
        if not path.exists():
            raise ImageError(f"there is no image {path}{_suggestion(path)}")
        if not path.is_file():  # a pipe or device would block or never end
            raise ImageError(f"{path} is not a regular file")
        num_bytes = path.stat().st_size
        if num_bytes == 0:
            raise ImageError(f"{path} is empty (0 bytes)")
        if num_bytes > MAX_BYTES:
            raise ImageError(f"{path} is too large: {num_bytes >> 20} MiB; at most {MAX_BYTES >> 20} MiB are read")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ImageError(f"{path!s} cannot be opened: {_one_line(error)}") from None


def _suggestion(path: Path) -> str:
    """Return the nearest file name of the folder, as the end of a message."""
    try:
        names = [entry.name for entry in islice(os.scandir(path.parent), MAX_LISTED)]
    except OSError:
        return f"; there is no folder {path.parent}"
    by_case = {name.lower(): name for name in names if Path(name).suffix.lower() in SUFFIXES}
    near = difflib.get_close_matches(path.name.lower(), by_case, 1, 0.6)
    return f"; did you mean {path.with_name(by_case[near[0]])}?" if near else ""


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is damaged: its size is {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        megapixels = width * height / 1e6
        raise ImageError(
            f"{name} is too large: {width} x {height} = {megapixels:.0f} megapixels; "
            f"at most {MAX_PIXELS // 10**6} are read, so make it smaller"
        )
    if max(size) > MAX_ASPECT * min(size):
        raise ImageError(f"{name} is too narrow: {width} x {height}; one side may be {MAX_ASPECT} times as long")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any mode to RGB: 16 bit to 8 bit by the high byte, transparency on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ImageError(f"{name} holds floating-point pixels; save it with 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.max(initial=0) > 255 or image.mode != "I":
            values = values >> 8
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, (*WHITE, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
