"""The header of a single-file decoder (.safetensors): its parts and its prediction type.

Such a file holds a U-Net and a VAE in the names of latent diffusion, often a text encoder too, which KOSMOS-G replaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kgcli.errors import IncompatibleError, MissingError

UNET = "model.diffusion_model."
VAE = "first_stage_model."
MARKERS = ("v_pred", "ztsnr", "scaled_fp8")  # tensors without a layer, of the whole file or of its U-Net
_FIRST_LAYER = f"{UNET}input_blocks.0.0.weight"
_LAST_LAYER = f"{UNET}out.2.weight"
_OTHER_INPUTS = {  # (input, output) channels
    (9, 4): "an inpainting checkpoint",
    (8, 4): "an image-editing checkpoint (InstructPix2Pix)",
    (5, 4): "a depth checkpoint",
}
_PREDICTIONS = {
    **dict.fromkeys(("epsilon", "eps"), "epsilon"),
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "vpred"), "v_prediction"),
    **dict.fromkeys(("sample", "x0"), "sample"),
}
_PREDICTION_KEY = "modelspec.prediction_type"


def check_single_decoder(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a file that cannot be a decoder of this family.

    Raises: IncompatibleError.
    """
    check_inputs(str(path), _channels(shapes.get(_FIRST_LAYER), 1), _channels(shapes.get(_LAST_LAYER), 0))
    if any(name.startswith("edm_") for name in shapes):
        raise IncompatibleError(f"{path} was trained with the noise schedule of EDM, which is not supported")
    for part, prefix in (("unet", UNET), ("vae", VAE)):
        if not any(name.startswith(prefix) for name in shapes):
            first = f" (the first tensor is {min(shapes)[:60]})" if shapes else ""
            raise IncompatibleError(
                f"the decoder's {part} is not in {path}: none of its {len(shapes)} tensors begins with {prefix}"
                f"{first}; give a checkpoint with both, or a diffusers folder"
            )


def check_inputs(source: str, inputs: object, outputs: object) -> None:
    """Refuse a U-Net with other input than output channels, which are those of its latents; None: not known.

    Raises: IncompatibleError.
    """
    if not (isinstance(inputs, int) and isinstance(outputs, int)) or inputs == outputs:
        return
    if outputs > inputs:
        raise IncompatibleError(f"{source} predicts {outputs} channels for latents of {inputs}, which is not supported")
    kind = _OTHER_INPUTS.get((inputs, outputs), f"a checkpoint for latents of {outputs} channels and further inputs")
    raise IncompatibleError(
        f"{source} is {kind}: its U-Net needs {inputs} input channels, which a prompt alone does not give; use the "
        "text-to-image checkpoint it was made from"
    )


def _channels(shape: tuple[int, ...] | None, axis: int) -> int | None:
    """Return a number of channels of a convolution's weight; None where there is none of that name."""
    return shape[axis] if shape is not None and len(shape) == 4 else None


def scheduler_settings(path: Path) -> dict[str, Any]:
    """Return the scheduler settings given by a file's markers and header, under diffusers' names.

    Raises: MissingError; IncompatibleError for a prediction type that is not supported.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "np") as file:
            names, header = set(file.keys()), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise MissingError(f"{path} is damaged ({error}); fetch or copy it again") from None
    found: dict[str, Any] = {}
    if value := header.get(_PREDICTION_KEY):
        if value.lower() not in _PREDICTIONS:
            raise IncompatibleError(f"{path} has {_PREDICTION_KEY} {value[:40]!r}; supported are epsilon, v and sample")
        found["prediction_type"] = _PREDICTIONS[value.lower()]
    if {"v_pred", f"{UNET}v_pred"} & names:
        found["prediction_type"] = "v_prediction"
    if {"ztsnr", f"{UNET}ztsnr"} & names:
        # The first step must be pure noise, or the schedule's last betas are never used. Source: arXiv:2305.08891
        found |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return found
