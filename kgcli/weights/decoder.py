"""The loader of image decoders: from a diffusers folder, the Hub or a single checkpoint file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from torch import Tensor

from kgcli.errors import IncompatibleError, MissingError
from kgcli.model.diffusion import Diffusion
from kgcli.weights.folder import check_safetensors
from kgcli.weights.meta import on_meta
from kgcli.weights.single_file import read_single_file, report_unread
from kgcli.weights.single_file_header import scheduler_settings

WEIGHTS_STEM = "diffusion_pytorch_model"
HALF_VARIANT = "fp16"  # diffusers' name for weights stored in half precision
HALF_DTYPES = (torch.float16, torch.bfloat16)
Part = TypeVar("Part", UNet2DConditionModel, AutoencoderKL)


def load_decoder(
    source: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    local_files_only: bool = False,
    variant: str | None = None,
    sizes: Path | str | None = None,
) -> Diffusion:
    """Load the decoder of a diffusers folder, a Hub id or a single .safetensors file.

    A single file holds only weights, under the names of any Stable Diffusion program: `sizes` is a diffusers folder
    with the matching config.json files and the scheduler, which the file's own settings override (`v_pred`, `ztsnr`,
    modelspec.prediction_type). Without `variant`, half precision files are used from the Hub where `dtype` is one
    or there are no others.

    Raises:
        MissingError: the folder or a file is not there or is damaged.
        IncompatibleError: the weights do not fit the sizes stored beside them.
    """
    if isinstance(source, Path) and not source.exists():
        raise MissingError(f"there is no decoder folder {source}")
    if Path(source).is_file():
        assert sizes is not None, "a single file needs a folder of sizes"
        tensors = read_single_file(Path(source))
        unet = _load_from_file(UNet2DConditionModel, tensors, source, "unet", dtype, sizes)
        vae = _load_from_file(AutoencoderKL, tensors, source, "vae", dtype, sizes)
        report_unread(Path(source), tensors, unet.state_dict(), vae.state_dict())
        schedule = _load_scheduler_config(sizes, local_files_only=True)
        return Diffusion(unet, vae, {**schedule, **scheduler_settings(Path(source))})
    unet = _load_part(UNet2DConditionModel, source, "unet", dtype, local_files_only, variant)
    vae = _load_part(AutoencoderKL, source, "vae", dtype, local_files_only, variant)
    return Diffusion(unet, vae, _load_scheduler_config(source, local_files_only))


def shape_decoder(source: Path) -> Diffusion:
    """Return the decoder of a diffusers folder on the meta device: shapes alone, its weight files checked.

    A folder without any weights, such as the sizes of Stable Diffusion v1.5 that ship, is taken as it is.

    Raises:
        MissingError: the folder or a file is not there or is damaged.
        IncompatibleError: the weights do not fit the sizes stored beside them.
    """
    unet = _shape_part(UNet2DConditionModel, source, "unet")
    vae = _shape_part(AutoencoderKL, source, "vae")
    return Diffusion(unet, vae, _load_scheduler_config(source, local_files_only=True))


def _shape_part(kind: type[Part], source: Path, name: str) -> Part:
    try:
        config = kind.load_config(str(source), subfolder=name, local_files_only=True)
    except OSError as error:
        raise MissingError(f"the decoder's {name} is not in {source} or is damaged: {_first_line(error)}") from None
    with on_meta():
        part = kind.from_config(config)
    files = sorted((source / name).glob(f"{WEIGHTS_STEM}.safetensors")) or sorted((source / name).glob("*.safetensors"))
    if files:
        # Older files name a VAE's attention otherwise: numbers are counted, names are left to the loader.
        stored = sum(math.prod(shape) for file in files for shape in check_safetensors(file).values())
        expected = sum(tensor.numel() for tensor in part.state_dict().values())
        if stored != expected:
            raise IncompatibleError(
                f"the decoder's {name} in {source} does not fit its config.json: it holds {stored:,} numbers, not "
                f"{expected:,}"
            )
    return part


def _load_part(
    kind: type[Part], source: Path | str, name: str, dtype: torch.dtype, local_files_only: bool, variant: str | None
) -> Part:
    variants = _variants(source, name, dtype, variant)
    for attempt, candidate in enumerate(variants, start=1):
        try:
            part, report = kind.from_pretrained(
                str(source),
                subfolder=name,
                torch_dtype=dtype,
                variant=candidate,
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=local_files_only,
            )
            break
        except OSError as error:
            if attempt < len(variants):
                continue
            raise MissingError(f"the decoder's {name} is not in {source} or is damaged: {_first_line(error)}") from None
        except ValueError as error:
            raise IncompatibleError(f"the decoder's {name} in {source} cannot be used: {_first_line(error)}") from None
    for fault in ("missing_keys", "unexpected_keys"):
        if report[fault]:
            listed = f"{len(report[fault])} {fault.replace('_keys', '')} weight(s), such as {sorted(report[fault])[0]}"
            raise IncompatibleError(f"the decoder's {name} in {source} does not fit its config.json: {listed}")
    return part


def _load_from_file(
    kind: type[Part],
    tensors: Mapping[str, Tensor],
    source: Path | str,
    name: str,
    dtype: torch.dtype,
    sizes: Path | str,
) -> Part:
    """Load one part of a single file; diffusers converts the names of other programs."""
    try:
        return kind.from_single_file(
            dict(tensors), config=str(sizes), subfolder=name, torch_dtype=dtype, local_files_only=True
        )
    except OSError as error:
        raise MissingError(f"the decoder's {name} is not in {source} or is damaged: {_first_line(error)}") from None
    except NotImplementedError:  # torch's error for a weight that is missing from the file
        raise IncompatibleError(
            f"the decoder's {name} in {source} does not fit the sizes of {sizes}: weights are missing"
        ) from None
    except (SingleFileComponentError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise IncompatibleError(f"the decoder's {name} in {source} cannot be used: {_first_line(error)}") from None


def _variants(source: Path | str, name: str, dtype: torch.dtype, variant: str | None) -> tuple[str | None, ...]:
    """Return the file variants to try in turn: those in a local folder, or both for a Hub id."""
    if variant is not None:
        return (variant,)
    if not Path(source).is_dir():
        return (HALF_VARIANT, None) if dtype in HALF_DTYPES else (None, HALF_VARIANT)
    folder = Path(source) / name
    only_half = any(folder.glob(f"{WEIGHTS_STEM}.{HALF_VARIANT}*.safetensors")) and not (
        any(folder.glob(f"{WEIGHTS_STEM}.safetensors")) or any(folder.glob(f"{WEIGHTS_STEM}-*.safetensors"))
    )
    return (HALF_VARIANT if only_half else None,)


def _load_scheduler_config(source: Path | str, local_files_only: bool) -> dict[str, Any]:
    try:
        # Any scheduler class reads the file of any other.
        return dict(DDPMScheduler.load_config(str(source), subfolder="scheduler", local_files_only=local_files_only))
    except OSError as error:
        raise MissingError(f"the decoder's scheduler is not in {source} or is damaged: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
