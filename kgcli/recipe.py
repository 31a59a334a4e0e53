"""Recipes: everything that makes one training run what it is; loaded, overridden, checked and dumped."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from kgcli.config import FolderName, ModelConfig, Rate, Seed, Strict, Weight
from kgcli.errors import ConfigError, MissingError
from kgcli.files import recipes_folder
from kgcli.reading import parse_yaml, read_yaml

PAPER_STAGES = ("pretrain", "align", "instruct")
RESULT = "final"  # folder inside a run folder
Column = Literal["image", "caption"]
OnFault = Literal["stop", "skip"]


class FilterConfig(Strict):
    """Filters of the rows of shards; they act on the index, once."""

    min_side: int = Field(default=0, ge=0)  # pixels of the shorter side of the main image
    max_aspect: float | None = Field(default=None, ge=1)  # longer side / shorter side
    max_tokens: int | None = Field(default=None, ge=1)  # of the words, where they were counted
    kinds: tuple[str, ...] = ()  # of records; none: all
    without_flags: tuple[str, ...] = ()  # rows with one of these are dropped, as unsafe
    where: tuple[str, ...] = ()  # of other programs' shards: conditions on columns, as "similarity >= 0.28"


class SourceConfig(Strict):
    """One source of a run's data, and its weight relative to the others."""

    kind: Literal["captions", "images", "prompts", "shards", "dataset", "world"]
    path: str = Field(
        default="", max_length=4096
    )  # file, folder or URL; in a recipe file relative to that file, in an override to the working directory
    weight: float = Field(default=1.0, gt=0, le=10**6)  # samples of this source per sample of a source of weight 1
    kinds: dict[str, Weight] = {}  # of kind world: kind of sample -> weight
    shuffle: bool = True  # of shards: rows in a random order in each epoch; False: in the order of the files
    window: int = Field(default=16, ge=1, le=10**4)  # of shards: how many are shuffled together
    filters: FilterConfig = FilterConfig()  # of shards
    as_published: bool = False  # of shards: lose the compositional samples that the published loader loses by mistake
    split: str = Field(default="train", max_length=200)  # of a Hugging Face dataset
    columns: dict[Column, str] = {}  # of a Hugging Face dataset: what its columns are

    @model_validator(mode="after")
    def _complete(self) -> SourceConfig:
        own = {"shards": ("shuffle", "window", "filters", "as_published"), "dataset": ("split", "columns")}
        for kind, names in own.items():
            if kind != self.kind and (given := self.model_fields_set & set(names)):
                if any(getattr(self, name) != type(self).model_fields[name].default for name in given):
                    raise ValueError(f"{sorted(given)[0]} is of a source of kind {kind}, not of kind {self.kind}")
        if self.kind == "world" and (self.path or not self.kinds):
            raise ValueError("a source of kind world has kinds and no path")
        if self.kind != "world" and (self.kinds or not self.path):
            raise ValueError(f"a source of kind {self.kind} has a path and no kinds")
        return self


class DataConfig(Strict):
    """The samples of a run and its batch size: either `kinds`, the nano world alone, or `sources`."""

    kinds: dict[str, Weight] = {}  # kind of world sample -> weight in the mixture
    sources: tuple[SourceConfig, ...] = ()
    batch_size: int = Field(ge=1, le=2**20)  # samples per step over all processes
    seed: Seed = 0
    # Of world samples: fractions of compositional captions without their entities' nouns, and of reference images that
    # show the scene; and how many images there are, with cached VAE moments (None: new ones).
    drop_entity_text: float = Field(default=0.5, ge=0, le=1)
    keep_background: float = Field(default=0.5, ge=0, le=1)
    pool: int | None = Field(default=None, ge=1, le=10**8)
    rendered: str | None = Field(
        default=None, max_length=4096
    )  # folder of the pool's images and captions, shared by recipes with the same data
    keep: bool = False  # keep whole samples of a pool or file in memory, words included: saves making them again
    moments: str | None = Field(
        default=None, max_length=4096
    )  # folder of cached VAE moments that several runs share, kept by shard and VAE; None: the run's own
    hidden: bool = False  # cache the hidden states of the frozen MLLM: of align, and of instruct with train: aligner
    bucket: int = Field(default=1, ge=1, le=10**4)  # steps read together and dealt out by length: saves padding
    mix: Literal["per_sample", "per_batch"] = "per_sample"  # per_batch: all samples of a step are of one source
    weigh: Literal["samples", "tokens"] = "samples"  # what the sources' weights are fractions of
    faults: OnFault = "stop"  # at a row that cannot be read: stop, or skip it and show another
    max_faults: int = Field(default=1000, ge=0)  # rows skipped before the run stops after all
    num_workers: int = Field(default=1, ge=0, le=256)  # processes that read ahead

    @model_validator(mode="after")
    def _one_of_both(self) -> DataConfig:
        if bool(self.sources) == bool(self.kinds):
            raise ValueError("give either kinds (of the nano world) or sources, one of both")
        if self.rendered is not None and not (self.kinds and self.pool):
            raise ValueError("rendered is the folder of a world pool's images: give kinds, and pool, their number")
        if len(self.sources) < 2 and (self.mix != "per_sample" or self.weigh != "samples"):
            raise ValueError("mix and weigh are of several sources: give them in sources")
        if self.keep and any(source.as_published for source in self.sources):
            raise ValueError("keep would show what as_published loses: leave one of them out")
        return self


class OptimConfig(Strict):
    """AdamW with linear warm-up, or Muon for matrices beside it. Defaults after the published runs."""

    lr: float = 1.0e-3  # peak, reached at the end of warm-up
    muon_lr: float | None = Field(default=None, gt=0)  # peak for matrices, which Muon then trains; None: AdamW
    betas: tuple[Rate, Rate] = (0.9, 0.98)
    eps: float = Field(default=1.0e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=375, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # how the rate falls to 0 after warm-up
    decay_fraction: float = 1.0  # fraction of the steps over which it falls; before that it is constant
    clip_norm: float = Field(default=2.0, gt=0)  # global L2 norm of the gradient

    @model_validator(mode="after")
    def _in_range(self) -> OptimConfig:
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")
        if not 0.0 < self.decay_fraction <= 1.0:
            raise ValueError(f"decay_fraction is {self.decay_fraction}; it must be above 0 and at most 1")
        return self


PartName = Literal["vision", "mllm", "aligner", "unet", "controlnet", "clip", "dino"]


class LoraConfig(Strict):
    """Low-rank adapters beside the MLLM's linear layers, for `train: lora`. Source: LoRA (arXiv:2106.09685)."""

    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0)  # an adapter's output is scaled by alpha / rank
    targets: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"), min_length=1
    )  # last parts of the names of the layers that get one


class ValidationConfig(Strict):
    """Losses of held-out samples: of the nano world, or of `sources`, files that training does not read."""

    every: int | None = Field(default=None, ge=1)  # steps; None: never
    samples: int = Field(default=256, ge=1, le=10**6)  # rounded up to whole batches
    sources: tuple[SourceConfig, ...] = ()


class Recipe(Strict):
    """Everything that makes one training run what it is; saved with every checkpoint."""

    stage: str
    output_dir: FolderName  # the run folder
    init_from: dict[str, FolderName] = {}  # part -> the folder it starts from
    steps: int = Field(ge=1, le=10**9)  # optimizer steps
    seed: Seed = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the forward pass; weights stay fp32
    # Several processes: ddp keeps all weights on each, fsdp2 shards weights, gradients and optimizer state.
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    accumulate: int = Field(default=1, ge=1, le=2**20)  # micro-batches per step on each process: less memory, same step
    pack: int | None = Field(default=None, ge=8, le=2**20)  # tokens of a row of the MLLM that several samples share
    # torch.compile, of the stage's heaviest parts or of those named: minutes to start, then 1.2 to 1.4 times as fast
    compile: bool | tuple[PartName, ...] = False
    activation_checkpointing: tuple[PartName, ...] = ()  # parts that compute activations twice instead of keeping them
    train: Literal["full", "lora", "aligner"] = "full"  # of stage instruct: what of the prompt encoder trains
    lora: LoraConfig = LoraConfig()  # of train: lora
    ema_decay: Rate | None = None  # of the exported weights' running mean; None exports the last ones
    log_every: int = Field(default=50, ge=1)  # steps
    save_every: int = Field(default=1000, ge=1)  # steps
    sample_every: int = Field(default=1000, ge=1)  # steps
    keep_checkpoints: int = Field(default=2, ge=1)
    async_save: bool = False  # write checkpoints while training goes on; takes a copy of the weights in memory
    validation: ValidationConfig = ValidationConfig()
    trackers: tuple[Literal["wandb", "trackio"], ...] = ()  # beside metrics.jsonl and TensorBoard
    max_skipped: int = Field(default=10, ge=1)  # steps in a row with NaN or infinity, skipped, before the run ends
    image_size: int = Field(default=64, ge=8, le=2048)  # pixels of targets, and of the images in world samples
    model: ModelConfig = ModelConfig()
    parts: dict[str, dict[str, Any]] = {}  # library configurations of the parts a base stage builds
    options: dict[str, float] = {}  # the stage's own options, described in its docstring
    data: DataConfig
    optim: OptimConfig = OptimConfig()

    @model_validator(mode="after")
    def _can_run(self) -> Recipe:
        if self.data.kinds and not sum(self.data.kinds.values()) > 0:
            raise ValueError("data.kinds gives every kind a weight of 0; one must be above 0")
        if self.train != "full" and self.stage != "instruct":
            raise ValueError(f"train: {self.train} is for stage instruct; stage {self.stage} takes train: full alone")
        if self.data.hidden and self.parallel == "fsdp2":
            raise ValueError("data.hidden needs the whole MLLM on one process: set parallel to ddp")
        return self


def load_recipe(name: str, overrides: list[str] | None = None, stage: str | None = None) -> Recipe:
    """Read a recipe by path or shipped name, apply `key=value` overrides, check every key.

    Raises:
        MissingError: no such recipe.
        ConfigError: it is not YAML, has an unknown key or a wrong value, or is for another stage.
    """
    path = find_recipe(name)
    values = read_yaml(path, error=ConfigError) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a recipe: it holds no keys")
    _anchor_sources(values, path.parent)
    for override in overrides or []:
        _set(values, override)
    _anchor_sources(values, Path.cwd())  # those of overrides; the others are absolute by now
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Recipe)}") from None
    if stage is not None and recipe.stage != stage:
        raise ConfigError(f"{path} is a recipe for `kg {command_of(recipe.stage)}`, not `kg {command_of(stage)}`")
    return recipe


def command_of(stage: str) -> str:
    """Return the command that trains a stage: the paper's three have their own, the others are below `base`."""
    return stage if stage in PAPER_STAGES else f"base {stage}"


def maker_of(folder: str) -> str | None:
    """Return the command of the shipped recipe that exports a folder, such as runs/nano/align/final."""
    if (path := find_maker(folder)) is None:
        return None
    stage = read_yaml(path, error=ConfigError).get("stage")
    return f"kg {command_of(str(stage))} {path.relative_to(recipes_folder()).with_suffix('').as_posix()}"


def find_maker(folder: str) -> Path | None:
    """Return the file of the shipped recipe that exports a folder."""
    for path in sorted(recipes_folder().rglob("*.yaml")):
        result = Path(str(read_yaml(path, error=ConfigError).get("output_dir"))) / RESULT
        if Path(folder).is_relative_to(result):
            return path
    return None


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def find_recipe(name: str) -> Path:
    """Return the file of a recipe given by path or by shipped name, as `nano/align`."""
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
    """Make the relative paths of sources, as a recipe file has them, absolute; faults are for the check."""
    parts = [part for part in (values.get("data"), values.get("validation")) if isinstance(part, dict)]
    lists = [part.get("sources") for part in parts]
    for source in [source for sources in lists if isinstance(sources, list) for source in sources]:
        if isinstance(source, dict) and source.get("path") and isinstance(source["path"], str):
            path = folder.absolute() / source["path"]
            is_elsewhere = "://" in source["path"] or (source.get("kind") == "dataset" and not path.exists())
            source["path"] = source["path"] if is_elsewhere else str(path)


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override; write key=value, as optim.lr=1e-4")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {parent} has no keys below it")
    value = parse_yaml(text, name=f"{override[:80]!r} is not an override: its value", error=ConfigError)
    try:
        values[last] = float(value) if isinstance(value, str) else value  # PyYAML reads 1e-3 as text
    except ValueError:
        values[last] = value


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Return all faults of a configuration in one line, with the nearest key where one is unknown.

    Unknown keys come first: a misspelt key is often the one that is missing.

    Args:
        prefix: of the keys, as in "options."
    """
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    return "; ".join(dict.fromkeys(_explain_fault(fault, model, prefix) for fault in faults))


def _explain_fault(fault: Any, model: type[BaseModel], prefix: str) -> str:
    where = prefix + ".".join(str(step) for step in fault["loc"])
    if fault["type"] != "extra_forbidden":
        return f"{where or 'recipe'}: {fault['msg'].removeprefix('Value error, ')}"
    for step in fault["loc"][:-1]:
        if isinstance(step, int):  # of a tuple, whose models are all alike
            continue
        inner = model.model_fields[str(step)].annotation if str(step) in model.model_fields else None
        inner = next(iter(get_args(inner)), inner)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    near = difflib.get_close_matches(str(fault["loc"][-1]), list(model.model_fields), 1, 0.5)
    return f"unknown key {where}" + (f"; did you mean {near[0]}?" if near else "")
