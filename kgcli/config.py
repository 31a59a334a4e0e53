"""Every size, recipe and default as strict, frozen models: load, override, check, dump.

Model sizes (`ModelConfig`) hold for nano and full size alike; the two differ by numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kgcli.errors import IncompatibleError, UsageError


class Strict(BaseModel):
    """Base of all configurations: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Size = Annotated[int, Field(ge=1, le=2**20)]  # no part of any model is larger
Seed = Annotated[int, Field(ge=0, lt=2**22)]
Rate = Annotated[float, Field(ge=0, lt=1)]
DecoderName = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]  # as long as one file name
Weight = Annotated[float, Field(ge=0)]
FolderName = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]


class SpecialIds(Strict):
    """Token ids with a meaning of their own. Source: the published fairseq dictionary."""

    bos: int = 0
    pad: int = 1
    eos: int = 2
    unk: int = 3
    mask: int = 64001
    eod: int = 64002  # </doc>
    boi: int = 64003  # <image>: opens an image and fills its slots
    eoi: int = 64004  # </image>
    eoc: int = 64005  # </chunk>
    eol: int = 64006  # </line>


class VisionConfig(Strict):
    """The CLIP vision tower. Defaults: ViT-L/14."""

    image_size: Size = 224  # pixels, square
    patch_size: Size = 14  # pixels
    width: Size = 1024
    num_heads: Size = 16
    num_layers: Size = 24
    mlp_ratio: float = Field(default=4.0, gt=0, le=64)
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"


class ResamplerConfig(Strict):
    """Attentive pooling of one image to a fixed number of tokens."""

    num_queries: Size = 64  # also the slots one image takes in a sequence
    num_heads: Size = 32
    dropout: Rate = 0.1


class MLLMConfig(Strict):
    """The Magneto causal decoder. Defaults: the published 1.3 B model."""

    vocab_size: Size = 64007
    width: Size = 2048
    num_layers: Size = 24
    num_heads: Size = 32
    ffn_width: Size = 8192
    max_positions: Size = 2048  # tokens, checked at the edge only
    dropout: Rate = 0.1


class AlignerConfig(Strict):
    """AlignerNet, each of its four stacks. Defaults: the published 225 M (one direction).

    The other kinds are ablations: `decoder` lets the queries look at the MLLM's states themselves, `linear` hands the
    states on through one matrix; neither has a way back.
    """

    kind: Literal["full", "decoder", "linear"] = "full"
    width: Size = 768  # the width of the decoder's text embedding
    num_heads: Size = 12
    ffn_width: Size = 3072
    num_layers: Size = 12
    num_queries: Size = 77  # the length of the decoder's text embedding
    max_positions: Size = 32768  # rows of each learned position table


SCHEDULERS = ("ddim", "pndm", "dpm++", "euler", "unipc", "lcm")
SIZE_MULTIPLE = 8  # pixels
MAX_SIDE = 4096  # pixels
MAX_STEPS = 1000  # the length of the training schedule
MAX_GUIDANCE = 100.0
MAX_BATCH = 16  # images denoised at once


class SamplingConfig(Strict):
    """Sampling settings of an image; None takes the model's default.

    Flags, batch lines, requests, the records in image files, model folders and baselines all hold one of these. Files
    and flags call the number of steps `steps` or `num_steps`; those names are read too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)  # `check` refuses it by the flag's name

    width: int | None = None  # pixels
    height: int | None = None  # pixels
    num_inference_steps: int | None = Field(
        default=None, validation_alias=AliasChoices("num_inference_steps", "num_steps", "steps")
    )
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    scheduler: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a complete configuration, in pixels."""
        assert self.width is not None and self.height is not None, "not complete: call over() with defaults first"
        return self.width, self.height

    def over(self, defaults: SamplingConfig) -> SamplingConfig:
        """Return these settings with `defaults` in place of None."""
        return defaults.model_copy(update=self.given())

    def given(self) -> dict[str, Any]:
        """Return the settings that are not None, by name."""
        return {name: value for name, value in self if value is not None}

    def check(self) -> None:
        """Refuse settings out of range.

        Raises: UsageError that names the flag.
        """
        for flag, side in (("--width", self.width), ("--height", self.height)):
            if side is not None and (side % SIZE_MULTIPLE or not SIZE_MULTIPLE <= side <= MAX_SIDE):
                raise UsageError(f"{flag} is {side}; it must be a multiple of {SIZE_MULTIPLE} up to {MAX_SIDE} pixels")
        steps = self.num_inference_steps
        if steps is not None and not 1 <= steps <= MAX_STEPS:
            raise UsageError(f"--steps is {steps}; it must be from 1 to {MAX_STEPS}")
        scale = self.guidance_scale
        if scale is not None and not (math.isfinite(scale) and 0 <= scale <= MAX_GUIDANCE):
            raise UsageError(f"--guidance-scale is {scale}; it must be from 0 to {MAX_GUIDANCE:g}")
        rescale = self.guidance_rescale
        if rescale is not None and not (math.isfinite(rescale) and 0 <= rescale <= 1):
            raise UsageError(f"guidance_rescale is {rescale}; it must be from 0 to 1")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise UsageError(f"--scheduler is {self.scheduler}; it must be one of {', '.join(SCHEDULERS)}")


def read_sampling(settings: Mapping[str, Any]) -> SamplingConfig:
    """Return keyword arguments of a Python caller as a configuration.

    Raises: UsageError for an unknown name or a value of another type.
    """
    try:
        return SamplingConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(step) for step in first["loc"])
        if first["type"] != "extra_forbidden":
            raise UsageError(f"{name}: {first['msg']}") from None
        raise UsageError(f"unknown setting {name}; there are {', '.join(SamplingConfig.model_fields)}") from None


# Default of a model folder. Source: the published KOSMOS-G's own demo settings.
DEFAULT_SAMPLING = SamplingConfig(
    width=512, height=512, num_inference_steps=50, guidance_scale=6.0, guidance_rescale=0.0, scheduler="dpm++"
)


class ModelConfig(Strict):
    """All sizes of one KOSMOS-G, and where its parts lie in the model folder."""

    vision: VisionConfig = VisionConfig()
    resampler: ResamplerConfig = ResamplerConfig()
    mllm: MLLMConfig = MLLMConfig()
    aligner: AlignerConfig = AlignerConfig()
    special_ids: SpecialIds = SpecialIds()
    max_subjects: int | None = None  # images that it was trained to combine in one; more get a note
    image_fit: Literal["pad", "crop", "stretch"] = "pad"  # how an image becomes square unless its tag sets it
    decoder: DecoderName = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # folder inside the model folder, or Hub id
    max_images: int = Field(default=16, ge=0, le=2**20)  # images in one prompt
    generation: SamplingConfig = DEFAULT_SAMPLING  # defaults of `kg generate`

    @field_validator("generation")
    @classmethod
    def _complete(cls, generation: SamplingConfig) -> SamplingConfig:
        generation = generation.over(DEFAULT_SAMPLING)
        try:
            generation.check()
        except UsageError as error:
            raise ValueError(str(error)) from None
        return generation

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelConfig:
        for name, width, heads in (
            ("vision", self.vision.width, self.vision.num_heads),
            ("resampler", self.mllm.width, self.resampler.num_heads),
            ("mllm", self.mllm.width, self.mllm.num_heads),
            ("aligner", self.aligner.width, self.aligner.num_heads),
        ):
            if width % heads:
                raise ValueError(f"{name}: width {width} does not divide into {heads} heads")
        if self.vision.image_size % self.vision.patch_size:
            raise ValueError(
                f"vision: image_size {self.vision.image_size} is not a multiple of patch_size {self.vision.patch_size}"
            )
        return self


CONFIG_NAME = "config.json"  # of a model folder
ALIGNER = "aligner."  # the names of AlignerNet's weights begin so
OFFLOADS = ("none", "model", "sequential")  # how weights are kept out of an accelerator's memory
QUANTIZE = ("none", "8bit", "4bit")  # how the MLLM's linear layers are held


def check_aligner(names: Iterable[str], folder: Path) -> None:
    """Check that the weights of a folder include an AlignerNet.

    Raises: IncompatibleError.
    """
    if not any(name.startswith(ALIGNER) for name in names):
        raise IncompatibleError(
            f"{folder} is the result of stage 1: it has no AlignerNet yet. `kg align` makes one (init_from.model), "
            "and `kg instruct` after it a model that generates"
        )
