"""Metadata of generated images: built, embedded, read back.

PNG: text chunks `parameters` (the web UI convention of A1111) and `kgcli` (JSON).
JPEG and WebP: `parameters` as EXIF UserComment, `kgcli` in a file beside the image (`out.jpg.json`).
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image, PngImagePlugin

from kgcli.data.images import DECODER_ERRORS, MAX_PIXELS
from kgcli.data.prompt import ImageRef, Prompt
from kgcli.errors import ImageError, MissingError, printable
from kgcli.inference.adapters.named import Adapters, Source
from kgcli.inference.user_comment import decode_comment, encode_comment
from kgcli.reading import parse_json, read_text
from kgcli.runtime import versions
from kgcli.version import __version__
from kgcli.weights.folder import ModelFolder

if TYPE_CHECKING:
    from kgcli.inference.request import Request

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


def describe(
    request: Request,
    model: ModelFolder,
    device: str,
    dtype: str,
    quantize: str = "none",
    *,
    threads: int | None = None,
    compiled: bool = False,
) -> Metadata:
    """Return the metadata needed to regenerate an image, without the user's folders.

    Args:
        threads: of a CPU, which the order of sums depends on
        compiled: by --compile, which rounds differently
    """
    sampling, row = request.sampling, request.row
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
        "images": [{"name": image.name, "sha256": image.sha256} for image in request.images],
        "model": {"name": model.name, "sha256": model.sha256},
        "decoder": {"name": Path(model.decoder).name, "sha256": model.decoder_sha256},
        "adapters": _describe_adapters(request.adapters),
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
        **({"threads": threads} if threads is not None else {}),
        **({"batch": {"size": row.size, "index": row.index}} if row.size > 1 else {}),
        **({"compile": True} if compiled else {}),
        "versions": {name: number for name, number in versions(PACKAGES).items() if name != "kgcli"},
    }


def to_parameters(metadata: Mapping[str, Any]) -> str:
    """Return the `parameters` text used by A1111, Civitai and others."""
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


def encode_image(image: Image.Image, suffix: str, metadata: Metadata | None) -> bytes:
    """Encode an image file with metadata; equal inputs give equal bytes."""
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
    """Return the JSON file beside a JPEG or WebP image, None for PNG."""
    return None if FORMATS.get(path.suffix.lower()) == "PNG" else path.with_name(f"{path.name}.json")


def is_ours(path: Path) -> bool:
    """Return True if an image's metadata name this program."""
    try:
        return "Version: kgcli " in (read_parameters(path) or "")
    except ImageError:
        return False


def read_metadata(path: Path) -> Metadata:
    """Read the metadata of an image written by this program.

    Raises: ImageError if there is no such image; MissingError if it has no metadata.
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
    """Read the `parameters` text of an image, ours or another program's."""
    info = _read_info(path)
    if PARAMETERS in info:
        return str(info[PARAMETERS])
    return decode_comment(info.get("UserComment", b""))


def _read_info(path: Path) -> dict[str, Any]:
    """Read text chunks and EXIF comment."""
    if not path.is_file():
        raise ImageError(f"there is no image {path}")
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
        raise ImageError(f"{path} is not an image in a supported format, or is damaged") from None


def _user_comment(text: str) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = encode_comment(text)
    return exif


def _plain_prompt(prompt: str) -> str:
    """Return the prompt for other programs: image tags kept, escapes removed."""
    return "".join(part if isinstance(part, str) else f"<image:{part.name}>" for part in Prompt.parse(prompt).parts)


def _describe_adapters(adapters: Adapters) -> list[Metadata]:
    """Describe LoRA files and ControlNets by base names and hashes."""
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
                "image": {"name": control.image.name, "sha256": control.image.sha256},
                "model": _describe_source(control.source),
                "map_model": _describe_source(control.maker) if control.maker else None,
            }
            for control in adapters.controls
        ),
    ]


def _describe_source(source: Source) -> Metadata:
    return {"name": source.name, "sha256": source.sha256}


def _hash_field(loras: list[Metadata]) -> dict[str, str]:
    """Return the web UI's field of LoRA hashes (AutoV3), if any."""
    hashes = ", ".join(f"{_tag_name(lora)}: {lora['autov3'][:12]}" for lora in loras)
    return {"Lora hashes": hashes} if loras else {}


def _tag_name(lora: Metadata) -> str:
    """Return a LoRA's name as in the web UI, without its delimiters."""
    return re.sub(r"[,:<>]|[\r\n]+", "", Path(lora["name"]).stem)


def _quoted(value: str) -> str:
    """Quote a value that contains a delimiter, as the web UI does."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n\r]', value) else value


def portable_prompt(request: Request) -> str:
    """Return the prompt with base names in place of paths, without the user's folders."""
    images = iter(request.images)
    parts: list[Any] = [
        replace(part, path=next(images).name) if isinstance(part, ImageRef) else part for part in request.prompt.parts
    ]
    return Prompt(parts=tuple(parts)).format()
