"""Sampler names of the command line, and the diffusers scheduler that each makes of a decoder's own settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from kgcli.errors import IncompatibleError, UsageError

ZERO_SNR = "rescale_betas_zero_snr"

# Class, then settings where the decoder's own say nothing. Latents are not pixels in [-1, 1]: never clipped.
_SAMPLERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    # The published model was made with a diffusers whose solver ends at the noise level of timestep 0.
    "dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "final_sigmas_type": "sigma_min"}),
    "euler": (EulerDiscreteScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "lcm": (LCMScheduler, {"clip_sample": False}),
}
# Settings of the published evaluations: over the decoder's own, so that a protocol means one thing for all decoders.
# Source: KOSMOS-G (arXiv:2310.02992), its released scripts; diffusers' own default for the last has since moved.
PROTOCOL_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++-sigma-min": (
        "dpm++",
        {
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "timestep_spacing": "linspace",
            "lower_order_final": True,
            "final_sigmas_type": "sigma_min",
        },
    ),
    "ddim-leading": (
        "ddim",
        {"timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False},
    ),
}


def make_scheduler(name: str, decoder_config: Mapping[str, Any]) -> Any:
    """A diffusers scheduler that honours the decoder's prediction type, noise schedule and timestep spacing.

    Raises:
        UsageError: there is no such sampler.
        IncompatibleError: the sampler cannot start from the pure noise the decoder was trained on.
    """
    if name in PROTOCOL_SAMPLERS:
        name, settings = PROTOCOL_SAMPLERS[name]
        return make_scheduler(name, {**decoder_config, **settings})
    if name not in _SAMPLERS:
        raise UsageError(f"there is no scheduler {name}; choose one of {', '.join(_SAMPLERS)}")
    kind, defaults = _SAMPLERS[name]
    known = inspect.signature(kind.__init__).parameters
    if decoder_config.get(ZERO_SNR) and ZERO_SNR not in known:
        raise IncompatibleError(
            f"the scheduler {name} cannot start from pure noise, which this decoder was trained on (zero terminal "
            "SNR); choose ddim, dpm++, euler, unipc or lcm"
        )
    settings = {**defaults, **{key: value for key, value in decoder_config.items() if key in known}}
    return kind.from_config(settings)
