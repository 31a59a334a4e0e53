"""Settings of the page: sampling, a LoRA and a ControlNet, within limits that keep one request affordable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kgcli.app.limits import MAX_IMAGES, MAX_SIDE, MAX_STEPS, NONE
from kgcli.app.uploads import Upload
from kgcli.config import SamplingConfig, read_sampling
from kgcli.errors import IncompatibleError, UsageError
from kgcli.inference.adapters.named import (
    MADE_MAPS,
    MAX_CONTROL_SCALE,
    MAX_LORA_SCALE,
    Adapters,
    Control,
    find_controlnet,
    find_maker,
    read_adapters,
    read_kinds,
)
from kgcli.inference.request import MAX_SEED, random_seed
from kgcli.weights.folder import ModelFolder

SHIPPED_LORAS = ("nano/comic",)
SHIPPED_CONTROLS = ("canny",)
WHOLE = ("width", "height", "steps")  # whole numbers; 0 is empty


@dataclass(frozen=True)
class Offer:
    """The adapters that the page offers: those that ship, and those that its owner named on the command line."""

    loras: Mapping[str, str] = field(default_factory=dict)  # name on the page -> file
    controls: Mapping[str, str | None] = field(default_factory=dict)  # kind -> folder or Hub id, None = the default


def check_sampling(**values: Any) -> SamplingConfig:
    """Return sampling settings within the page's limits; empty ones take the model's default.

    A side or number of steps of 0 is empty.

    Raises: UsageError.
    """
    given = {name: value for name, value in values.items() if value not in (None, "")}
    for name in WHOLE:
        if given.get(name) == 0:
            del given[name]
        elif name in given:
            given[name] = _whole(given[name], name)
    sampling = read_sampling(given)
    sampling.check()
    if (sampling.num_inference_steps or 0) > MAX_STEPS:
        raise UsageError(f"{sampling.num_inference_steps} steps were asked for; this page runs at most {MAX_STEPS}")
    for side in (sampling.width, sampling.height):
        if (side or 0) > MAX_SIDE:
            raise UsageError(f"a side of {side} pixels was asked for; this page makes at most {MAX_SIDE}")
    return sampling


def read_seeds(seed: Any, num_images: Any) -> list[int]:
    """Return one seed per image, consecutive from the given one, or from a random one if it is empty or negative.

    Raises: UsageError.
    """
    num = _whole(num_images, "the number of images")
    if not 1 <= num <= MAX_IMAGES:
        raise UsageError(f"{num} images were asked for; this page makes 1 to {MAX_IMAGES} at once")
    first = random_seed() if seed in (None, "") or _whole(seed, "the seed") < 0 else _whole(seed, "the seed")
    if first + num - 1 > MAX_SEED:
        raise UsageError(f"the seed is {first}; it must be at most {MAX_SEED}")
    return [first + offset for offset in range(num)]


def make_adapters(
    model: ModelFolder,
    offer: Offer,
    *,
    lora: str = NONE,
    lora_scale: float = 1.0,
    control: str = NONE,
    control_images: Sequence[Upload] = (),
    control_scale: float = 1.0,
    ready: bool = False,
) -> Adapters:
    """Return the adapters chosen on the page; only those offered can be chosen.

    Raises: UsageError, MissingError, IncompatibleError.
    """
    loras: tuple[Any, ...] = ()
    if lora not in (NONE, "", None):
        if not isinstance(lora, str) or lora not in offer.loras:
            raise UsageError(f"there is no LoRA {lora} here; choose one of {', '.join([NONE, *offer.loras])}")
        scale = _number(lora_scale, "the LoRA's scale", -MAX_LORA_SCALE, MAX_LORA_SCALE)
        loras = read_adapters(model, loras=[f"{offer.loras[lora]}:{scale}"]).loras
    if control in (NONE, "", None):
        return Adapters(loras=loras)
    if not isinstance(control, str) or control not in offer.controls:
        raise UsageError(f"there is no ControlNet {control} here; choose one of {', '.join([NONE, *offer.controls])}")
    if len(control_images) != 1:
        raise UsageError(f"the ControlNet {control} needs an image; add it in its tab, or choose {NONE}")
    if not ready and control not in MADE_MAPS:
        raise UsageError(f"no {control} map can be made from a photo; add a ready one and mark it as ready")
    made = Control(
        kind=control,
        source=find_controlnet(control, offer.controls[control], model),
        image=control_images[0].file,
        ready=bool(ready),
        maker=None if ready else find_maker(control, None),
        scale=_number(control_scale, "the ControlNet's scale", 0.0, MAX_CONTROL_SCALE),
    )
    return Adapters(loras=loras, controls=(made,))


def read_offer(model: ModelFolder, loras: Sequence[str], controlnet_models: Sequence[str]) -> Offer:
    """Return the adapters that a page offers: the shipped ones that fit the model, and those of its owner.

    Raises: UsageError, MissingError, IncompatibleError.
    """
    offered = {}
    for location in loras:
        (lora,) = read_adapters(model, loras=[location]).loras
        offered[lora.source.name] = location
    networks: dict[str, str | None] = dict(read_kinds(controlnet_models, "--controlnet-model"))
    for kind, network in networks.items():
        find_controlnet(kind, network, model)
    for name in SHIPPED_LORAS:
        if _fits(partial(read_adapters, model, loras=[name])):
            offered.setdefault(name, name)
    for kind in SHIPPED_CONTROLS:
        if kind not in networks and _fits(partial(find_controlnet, kind, None, model)):
            networks[kind] = None
    return Offer(loras=offered, controls=networks)


def _fits(find: Callable[[], object]) -> bool:
    try:
        find()
    except (IncompatibleError, UsageError):
        return False
    return True


def _whole(value: Any, name: str) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise UsageError(f"{name} is {value!r}; it must be a whole number")
    return int(value)


def _number(value: Any, name: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UsageError(f"{name} is {value!r}; it must be from {least:g} to {most:g}")
    return float(value)
