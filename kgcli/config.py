"""Every size, recipe and default as strict, frozen models: load, override, check, dump.

Model sizes (`ModelConfig`) hold for nano and full size alike; the two differ by numbers only.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kgcli.errors import ConfigError, IncompatibleError, MissingError, UsageError
from kgcli.reading import parse_yaml, read_json, read_yaml


class Strict(BaseModel):
    """Base of all configurations: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# ---------------------------------------------------------------- the model


Size = Annotated[int, Field(ge=1, le=2**20)]  # no part of any model is larger
Seed = Annotated[int, Field(ge=0, lt=2**22)]  # each step's own seed is made of it by a shift of 40 bits
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


class SamplingConfig(Strict):
    """How an image is sampled; None leaves a setting to the model.

    Flags, batch lines, requests, the records in image files, model folders and baselines all hold one of these. Files
    and flags call the number of steps `steps` or `num_steps`; those names are read too.
    """

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
        """Return the same with `defaults` in place of None."""
        return defaults.model_copy(update=self.given())

    def given(self) -> dict[str, Any]:
        """Return the settings that are not None, by name."""
        return {name: value for name, value in self if value is not None}

    def check(self) -> None:
        """Refuse what no model can do.

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


# Of a model folder that does not say otherwise. Source: the published KOSMOS-G's own demo settings.
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
    image_fit: Literal["pad", "crop", "stretch"] = "pad"  # how an image becomes square where its tag does not say
    decoder: DecoderName = (
        "stable-diffusion-v1-5/stable-diffusion-v1-5"  # folder inside the model folder, path or Hub id
    )
    max_images: int = Field(default=16, ge=0, le=2**20)  # images in one prompt
    generation: SamplingConfig = DEFAULT_SAMPLING  # what `kg generate` uses where no flag says otherwise

    @field_validator("generation")
    @classmethod
    def _complete(cls, generation: SamplingConfig) -> SamplingConfig:
        return generation.over(DEFAULT_SAMPLING)

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
                f"vision: image_size {self.vision.image_size} is no multiple of patch_size {self.vision.patch_size}"
            )
        return self


CONFIG_NAME = "config.json"  # of a model folder
ALIGNER = "aligner."  # the names of AlignerNet's weights begin so
MAX_CONFIG_BYTES = 2**20
OFFLOADS = ("none", "model", "sequential")  # how weights are kept out of an accelerator's memory
QUANTIZE = ("none", "8bit", "4bit")  # how the MLLM's linear layers are held


def read_model_config(folder: Path) -> ModelConfig:
    """The sizes of a model folder.

    Raises:
        MissingError: the folder or its config.json is not there or is no JSON.
        IncompatibleError: it holds other keys or values than this version knows.
    """
    if not folder.is_dir():
        raise MissingError(f"there is no model folder {folder}")
    return read_model_config_file(folder / CONFIG_NAME)


def read_model_config_file(path: Path) -> ModelConfig:
    """The sizes that a config.json states. Raises as `read_model_config`."""
    if not path.is_file():
        raise MissingError(f"there is no {path.name} in {path.parent}; a model folder has one")
    values = read_json(path, max_bytes=MAX_CONFIG_BYTES)
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise IncompatibleError(f"{path} is of another version: {where or 'model'}: {first['msg']}") from None


def check_aligner(names: Iterable[str], folder: Path) -> None:
    """See that there is an AlignerNet among the weights of a folder.

    Raises: IncompatibleError.
    """
    if not any(name.startswith(ALIGNER) for name in names):
        raise IncompatibleError(
            f"{folder} is the result of stage 1: it has no AlignerNet yet. `kg align` makes one (init_from.model), "
            "and `kg instruct` after it a model that generates"
        )


# ---------------------------------------------------------------- a training run


class SourceConfig(Strict):
    """One source of a run's data, and its weight beside the others."""

    kind: Literal["captions", "images", "prompts", "world"]
    # A file or folder; in a recipe file relative to that file, in an override to the working directory.
    path: str = Field(default="", max_length=4096)
    weight: float = Field(default=1.0, gt=0, le=10**6)  # samples of this source per sample of a source of weight 1
    kinds: dict[str, Weight] = {}  # of kind world: kind of sample -> weight

    @model_validator(mode="after")
    def _complete(self) -> SourceConfig:
        if self.kind == "world" and (self.path or not self.kinds):
            raise ValueError("a source of kind world has kinds and no path")
        if self.kind != "world" and (self.kinds or not self.path):
            raise ValueError(f"a source of kind {self.kind} has a path and no kinds")
        return self


class DataConfig(Strict):
    """Which samples a run sees, and how many at a time. Either `kinds`, the nano world alone, or `sources`."""

    kinds: dict[str, Weight] = {}  # kind of world sample -> weight in the mixture
    sources: tuple[SourceConfig, ...] = ()
    batch_size: int = Field(ge=1, le=2**20)  # samples per step over all processes
    seed: Seed = 0
    # Of world samples: fractions of compositional captions without their entities' nouns, and of reference images that
    # show the scene; and how many images there are, with cached VAE moments (None draws new ones).
    drop_entity_text: float = Field(default=0.5, ge=0, le=1)
    keep_background: float = Field(default=0.5, ge=0, le=1)
    pool: int | None = Field(default=None, ge=1, le=10**8)
    keep: bool = False  # keep whole samples of a pool or file in memory, words included: saves making them again
    bucket: int = Field(default=1, ge=1, le=10**4)  # steps read together and dealt out by length: saves padding
    num_workers: int = Field(default=1, ge=0, le=256)  # processes that read ahead; each keeps its own

    @model_validator(mode="after")
    def _one_of_both(self) -> DataConfig:
        if bool(self.sources) == bool(self.kinds):
            raise ValueError("give either kinds (of the nano world) or sources, one of both")
        return self


class OptimConfig(Strict):
    """AdamW with linear warm-up. Defaults after the published runs."""

    lr: float = 1.0e-3  # peak, reached at the end of warm-up
    betas: tuple[Rate, Rate] = (0.9, 0.98)
    eps: float = Field(default=1.0e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=375, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # how the rate falls to 0 after warm-up
    decay_fraction: float = 1.0  # share of the steps over which it falls; before that it is constant
    clip_norm: float = Field(default=2.0, gt=0)  # global L2 norm of the gradient

    @model_validator(mode="after")
    def _in_range(self) -> OptimConfig:
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")
        if not 0.0 < self.decay_fraction <= 1.0:
            raise ValueError(f"decay_fraction is {self.decay_fraction}; it must be above 0 and at most 1")
        return self


class Recipe(Strict):
    """Everything that makes one training run what it is; saved with every checkpoint."""

    stage: str
    output_dir: FolderName  # the run folder
    init_from: dict[str, FolderName] = {}  # part -> the folder it starts from
    steps: int = Field(ge=1, le=10**9)  # optimizer steps
    seed: Seed = 0
    precision: Literal["fp32", "bf16"] = "fp32"  # of the forward pass; weights stay fp32
    compile: bool = False  # torch.compile: a minute or two to start, then 1.2 to 1.4 times as fast
    ema_decay: Rate | None = None  # of the exported weights' running mean; None exports the last ones
    log_every: int = Field(default=50, ge=1)  # steps
    save_every: int = Field(default=1000, ge=1)  # steps
    sample_every: int = Field(default=1000, ge=1)  # steps
    keep_checkpoints: int = Field(default=2, ge=1)
    image_size: int = Field(default=64, ge=8, le=2048)  # pixels of targets, and of the images in world samples
    model: ModelConfig = ModelConfig()
    parts: dict[str, dict[str, Any]] = {}  # library configurations of the parts a base stage builds
    options: dict[str, float] = {}  # the stage's own numbers, named in its docstring
    data: DataConfig
    optim: OptimConfig = OptimConfig()

    @model_validator(mode="after")
    def _can_run(self) -> Recipe:
        if self.data.kinds and not sum(self.data.kinds.values()) > 0:
            raise ValueError("data.kinds gives every kind a weight of 0; one must be above 0")
        return self


def load_recipe(name: str, overrides: list[str] | None = None, stage: str | None = None) -> Recipe:
    """Read a recipe by path or shipped name, apply `key=value` overrides, check every key.

    Raises:
        MissingError: no such recipe.
        ConfigError: it is no YAML, has an unknown key or a wrong value, or is for another stage.
    """
    path = find_recipe(name)
    values = read_yaml(path, error=ConfigError) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a recipe: it holds no keys")
    _anchor_sources(values, path.parent)
    for override in overrides or []:
        _set(values, override)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Recipe)}") from None
    if stage is not None and recipe.stage != stage:
        raise ConfigError(f"{path} is a recipe for `kg {recipe.stage}`, not `kg {stage}`")
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def recipes_folder() -> Path:
    """Where the shipped recipes lie: inside the installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "recipes"


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by shipped name, as `nano/align`."""
    shipped = recipes_folder()
    for candidate in (Path(name), Path(name + ".yaml"), shipped / name, shipped / (name + ".yaml")):
        if candidate.is_file():
            return candidate
    names = [str(path.relative_to(shipped).with_suffix("")) for path in shipped.rglob("*.yaml")]
    near = difflib.get_close_matches(name, names, 1, 0.4)
    raise MissingError(
        f"there is no recipe {name!r}" + (f"; did you mean {near[0]}?" if near else "; `kg ls` lists them")
    )


def _anchor_sources(values: dict[str, Any], folder: Path) -> None:
    """Make the relative paths of data.sources, as a recipe file has them, absolute; faults are for the check."""
    data = values.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, dict) and source.get("path") and isinstance(source["path"], str):
            source["path"] = str(folder.absolute() / source["path"])


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no override; write key=value, as optim.lr=1e-4")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {parent} has no keys below it")
    value = parse_yaml(text, name=f"{override[:80]!r} is no override: its value", error=ConfigError)
    try:
        values[last] = float(value) if isinstance(value, str) else value  # PyYAML reads 1e-3 as text
    except ValueError:
        values[last] = value


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Return the first fault of a configuration in one line, with the nearest key where one is unknown.

    Args:
        prefix: of the keys, as in "options."
    """
    first = error.errors()[0]
    where = prefix + ".".join(str(step) for step in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{where or 'recipe'}: {first['msg'].removeprefix('Value error, ')}"
    for step in first["loc"][:-1]:
        if isinstance(step, int):  # of a tuple, whose models are all alike
            continue
        inner = model.model_fields[str(step)].annotation if str(step) in model.model_fields else None
        inner = next(iter(get_args(inner)), inner)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    near = difflib.get_close_matches(str(first["loc"][-1]), list(model.model_fields), 1, 0.5)
    return f"unknown key {where}" + (f"; did you mean {near[0]}?" if near else "")
