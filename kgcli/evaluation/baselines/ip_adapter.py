"""IP-Adapter: an image as additional conditioning of Stable Diffusion, by diffusers' own loader.

Source: IP-Adapter (arXiv:2308.06721).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from kgcli.data.images import open_image
from kgcli.errors import IncompatibleError, MissingError
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.decoder import TextDecoder, find_decoder, read_dtype
from kgcli.evaluation.baselines.settings import check_range, read_settings
from kgcli.evaluation.plan import Item
from kgcli.runtime import memory_errors
from kgcli.weights.folder import check_diffusers_part, check_single_file
from kgcli.weights.hashes import hash_files
from kgcli.weights.hub import is_hub_id, snapshot

REPOSITORY = "h94/IP-Adapter"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


class IpAdapter:
    """Generate from an item's images and its scored text. Settings: subfolder, weight, image_encoder, scale."""

    name = "ip-adapter"
    # `image_encoder` is a folder inside `subfolder`, where the published repository has it. The scale is the one
    # that the authors advise for an image and a text together.
    defaults = {
        "subfolder": "models",
        "weight": "ip-adapter_sd15.safetensors",
        "image_encoder": "image_encoder",
        "scale": 0.6,
    }

    def __init__(self, options: MethodOptions) -> None:
        self.options = options
        read_dtype(options.dtype)
        self.settings = read_settings(self.name, self.defaults, options.extra)
        check_range(self.name, self.settings, {"scale": 0.0})
        self.path = _find(options.model or REPOSITORY, self.settings, options.offline)
        self.folder = find_decoder(options.decoder or SD15, options.offline)
        self.folder.sampling(options)
        shapes = check_single_file(self._weights)
        check_diffusers_part(self._encoder, "")
        width = next((shape[1] for name, shape in shapes.items() if name.endswith("to_k_ip.weight")), None)
        if width != self.folder.width:
            raise IncompatibleError(
                f"{self._weights} was made for a decoder of cross-attention width {width}; "
                f"this one has {self.folder.width}"
            )

    def facts(self) -> dict[str, Any]:
        """Return name, settings, sampling, and the hashes of decoder, adapter and image encoder."""
        return {
            "name": self.name,
            "decoder_sha256": self.folder.sha256,
            "adapter_sha256": hash_files([self._weights]),
            "image_encoder_sha256": hash_files(sorted(self._encoder.glob("*.safetensors"))),
            "dtype": "bfloat16" if self.options.dtype == "bfloat16" else "float32",
            **self.folder.sampling_facts(self.options),
            "settings": dict(sorted(self.settings.items())),
        }

    def prepare(self, subject: str, items: Sequence[Item], data: Path, folder: Path) -> None:
        """Do nothing: this method does not learn."""

    def draw(self, items: Sequence[Item], data: Path, folder: Path) -> list[Image.Image]:
        """Return an image per item; items go one by one, since each has images of its own."""
        images: list[Image.Image] = []
        with memory_errors():
            for item in items:
                if not item.inputs:
                    raise IncompatibleError(f"{item.path}: its prompt has no image; an IP-Adapter needs one")
                shown = [[open_image(data / name, srgb=False) for name in item.inputs]]
                images += self.decoder.generate([item.scored_text], [item.seed], ip_adapter_image=shown)
        return images

    @cached_property
    def decoder(self) -> TextDecoder:
        """The decoder with the adapter in its U-Net."""
        decoder = TextDecoder(self.folder, self.options)
        try:
            decoder.pipeline.load_ip_adapter(
                str(self.path),
                subfolder=self.settings["subfolder"],
                weight_name=self.settings["weight"],
                image_encoder_folder=self.settings["image_encoder"],
                local_files_only=True,
            )
        except (ValueError, KeyError, RuntimeError) as error:
            raise IncompatibleError(f"{self._weights} does not fit the decoder: {str(error).splitlines()[0]}") from None
        decoder.pipeline.set_ip_adapter_scale(self.settings["scale"])
        return decoder

    @property
    def _weights(self) -> Path:
        return self.path / self.settings["subfolder"] / self.settings["weight"]

    @property
    def _encoder(self) -> Path:
        return self.path / self.settings["subfolder"] / self.settings["image_encoder"]


def _find(location: str, settings: dict[str, Any], offline: bool) -> Path:
    """Return the adapter's folder. Raises: MissingError."""
    path = Path(location).expanduser()
    if path.is_dir():
        return path
    if not is_hub_id(location):
        raise MissingError(f"there is no IP-Adapter folder {location}")
    encoder = f"{settings['subfolder']}/{settings['image_encoder']}"
    wanted = [f"{settings['subfolder']}/{settings['weight']}", f"{encoder}/config.json", f"{encoder}/*.safetensors"]
    return snapshot(location, files=wanted, offline=offline)
