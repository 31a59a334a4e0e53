"""What a written picture says of its own making: built, embedded, read back. No torch.

PNG: text chunks `parameters` (the web UI convention of A1111) and `kgcli` (JSON).
JPEG and WebP: the former as EXIF UserComment, the latter in a file beside the picture (`out.jpg.json`).
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from kgcli.data.images import DECODER_ERRORS, MAX_PIXELS
from kgcli.data.prompt import Prompt
from kgcli.errors import ImageError, MissingError
from kgcli.files import printable
from kgcli.inference.adapters import Adapters, Source
from kgcli.inference.request import Request, portable_prompt
from kgcli.inference.user_comment import decode_comment, encode_comment
from kgcli.reading import parse_json, read_text
from kgcli.runtime import versions
from kgcli.version import __version__
from kgcli.weights.folder import ModelFolder

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
QUALITY = 95  # of JPEG and WebP
MAX_METADATA = 4 * 2**20  # bytes of a file beside an image
CHUNK = "kgcli"
PARAMETERS = "parameters"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "bitsandbytes", "opencv-python-headless", "pillow")
A1111_SAMPLERS = {
    "dpm++": "DPM++ 2M",
    "ddim": "DDIM",
    "pndm": "PLMS",
    "euler": "Euler",
    "unipc": "UniPC",
    "lcm": "LCM",
}

Metadata = dict[str, Any]


def describe(request: Request, model: ModelFolder, device: str, dtype: str, quantize: str = "none") -> Metadata:
    """All that is needed to draw the same picture again, without paths of the user's."""
    sampling = request.sampling
    return {
        "kgcli": __version__,
        "prompt": portable_prompt(request),
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        "steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
        "guidance_rescale": sampling.guidance_rescale,
        "scheduler": sampling.scheduler,
        "width": sampling.width,
        "height": sampling.height,
        "images": [{"name": picture.name, "sha256": picture.sha256} for picture in request.pictures],
        "model": {"name": model.name, "sha256": model.sha256},
        "decoder": {"name": Path(model.decoder).name, "sha256": model.decoder_sha256},
        "adapters": _describe_adapters(request.adapters),
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
        "versions": {name: number for name, number in versions(PACKAGES).items() if name != "kgcli"},
    }


def to_parameters(metadata: Mapping[str, Any]) -> str:
    """The `parameters` text that A1111, Civitai and others read."""
    adapters = metadata["adapters"]
    loras = [adapter for adapter in adapters if adapter["type"] == "lora"]
    named = "".join(f" <lora:{_tag_name(lora)}:{lora['scale']:g}>" for lora in loras)
    lines = [_plain_prompt(metadata["prompt"]) + named]
    if metadata["negative_prompt"]:
        lines.append(f"Negative prompt: {metadata['negative_prompt']}")
    fields = {
        "Steps": metadata["steps"],
        "Sampler": A1111_SAMPLERS.get(metadata["scheduler"], metadata["scheduler"]),
        "CFG scale": f"{metadata['guidance_scale']:g}",
        "Seed": metadata["seed"],
        "Size": f"{metadata['width']}x{metadata['height']}",
        "Model hash": metadata["model"]["sha256"][:10],
        "Model": metadata["model"]["name"],
        **_hash_field(loras),
        **{
            f"ControlNet {index}": f"Module: {control['kind']}, Model: {control['model']['name']}, "
            f"Weight: {control['scale']:g}"
            for index, control in enumerate(adapter for adapter in adapters if adapter["type"] == "controlnet")
        },
        "Version": f"kgcli {metadata['kgcli']}",
    }
    return "\n".join([*lines, ", ".join(f"{name}: {_quoted(str(value))}" for name, value in fields.items())])


def encode_picture(image: Image.Image, suffix: str, metadata: Metadata | None) -> bytes:
    """The bytes of a picture file; the same picture and metadata give the same bytes."""
    file = io.BytesIO()
    options: dict[str, Any] = {}
    kind = FORMATS[suffix.lower()]
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if metadata is not None:
            chunks.add_itxt(PARAMETERS, to_parameters(metadata))
            chunks.add_itxt(CHUNK, json.dumps(metadata, ensure_ascii=False))
        options["pnginfo"] = chunks
    else:
        options["quality"] = QUALITY
        if metadata is not None:
            options["exif"] = _user_comment(to_parameters(metadata))
    image.save(file, kind, **options)
    return file.getvalue()


def sidecar(path: Path) -> Path | None:
    """The file of JSON beside a picture whose format has no room for it, None for PNG."""
    return None if FORMATS.get(path.suffix.lower()) == "PNG" else path.with_name(f"{path.name}.json")


def is_ours(path: Path) -> bool:
    """Return whether an image's own text says that this program wrote it."""
    try:
        return "Version: kgcli " in (read_parameters(path) or "")
    except ImageError:
        return False


def read_metadata(path: Path) -> Metadata:
    """The metadata of a picture this program wrote.

    Raises: ImageError where there is no such picture; MissingError where it says nothing of its making.
    """
    chunk = _read_info(path).get(CHUNK)
    beside = sidecar(path)
    if chunk is None and beside is not None and beside.is_file():
        chunk = read_text(beside, max_bytes=MAX_METADATA)
    if chunk is None:
        raise MissingError(f"{path} holds no kgcli metadata: it was written by another program or with --no-metadata")
    metadata = parse_json(str(chunk), name=f"the kgcli metadata of {printable(path)}")
    if not isinstance(metadata, dict) or "prompt" not in metadata:
        raise MissingError(f"the kgcli metadata of {printable(path)} are damaged (no prompt in it)")
    return metadata


def read_parameters(path: Path) -> str | None:
    """The `parameters` text of a picture, ours or another program's."""
    info = _read_info(path)
    if PARAMETERS in info:
        return str(info[PARAMETERS])
    return decode_comment(info.get("UserComment", b""))


def _read_info(path: Path) -> dict[str, Any]:
    """Text chunks and EXIF comment; pixels are not decoded."""
    if not path.is_file():
        raise ImageError(f"there is no picture {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=tuple(set(FORMATS.values()))) as image:
                if image.width * image.height <= MAX_PIXELS and image.format == "PNG":
                    image.load()  # text chunks may follow the pixels
                comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
                return {
                    **{str(name): value for name, value in image.info.items()},
                    "UserComment": comment.encode() if isinstance(comment, str) else bytes(comment),
                }
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        raise ImageError(f"{path} is no picture that can be read, or is damaged") from None


def _user_comment(text: str) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = encode_comment(text)
    return exif


def _plain_prompt(prompt: str) -> str:
    """The prompt as others show it: image tags stay, escapes go."""
    return "".join(part if isinstance(part, str) else f"<image:{part.name}>" for part in Prompt.parse(prompt).parts)


def _describe_adapters(adapters: Adapters) -> list[Metadata]:
    """LoRA files and ControlNets, by base names and hashes."""
    return [
        *(
            {"type": "lora", **_describe_source(lora.source), "autov3": lora.autov3, "scale": lora.scale}
            for lora in adapters.loras
        ),
        *(
            {
                "type": "controlnet",
                "kind": control.kind,
                "scale": control.scale,
                "ready": control.ready,
                "image": {"name": control.picture.name, "sha256": control.picture.sha256},
                "model": _describe_source(control.source),
                "map_model": _describe_source(control.maker) if control.maker else None,
            }
            for control in adapters.controls
        ),
    ]


def _describe_source(source: Source) -> Metadata:
    return {"name": source.name, "sha256": source.sha256}


def _hash_field(loras: list[Metadata]) -> dict[str, str]:
    """The web UI's field of LoRA hashes (AutoV3), where there are any."""
    hashes = ", ".join(f"{_tag_name(lora)}: {lora['autov3'][:12]}" for lora in loras)
    return {"Lora hashes": hashes} if loras else {}


def _tag_name(lora: Metadata) -> str:
    """A LoRA's name as the web UI writes it: without the signs that would end it there."""
    return re.sub(r"[,:<>]|[\r\n]+", "", Path(lora["name"]).stem)


def _quoted(value: str) -> str:
    """A value of the settings, quoted as the web UI does where it would end too early."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n\r]', value) else value
