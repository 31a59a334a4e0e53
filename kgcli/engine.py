"""The entry points behind the commands: load, generate, edit, explain, encode, train, evaluate.

Each imports and calls the module that does the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from kgcli.config import SamplingConfig
    from kgcli.inference.denoise import StepCallback
    from kgcli.inference.explain.maps import Explanation
    from kgcli.inference.model import Model
    from kgcli.inference.request import Request
    from kgcli.recipe import Recipe
    from kgcli.training.checks.report import Plan
    from kgcli.weights.folder import ModelFolder


def load(model: str | ModelFolder | None = None, **options: Any) -> Model:
    """Load a model: a folder, a Hub id, or None for the shipped nano model; see `kgcli.inference.model.load`.

    Example:
        >>> model = load(device="cpu")
        >>> model.generate("a cat in the snow", seed=0, num_inference_steps=2)[0].size
        (128, 128)
    """
    from kgcli.weights.folder import ModelFolder

    if isinstance(model, ModelFolder):  # as commands give it
        prepare(model)
    from kgcli.inference.model import load as load_model

    return load_model(model, **options)


def generate(
    model: Model,
    requests: Iterable[Request],
    on_step: StepCallback | None = None,
    batch_size: int | str = 1,
) -> Iterator[tuple[Request, Image.Image]]:
    """Generate one image for each request, in order; see `kgcli.inference.model.generate`.

    Example:
        >>> from kgcli.config import SamplingConfig
        >>> from kgcli.inference.request import make_request
        >>> model = load(device="cpu")
        >>> request = make_request(model.folder, "a cat", seed=1, sampling=SamplingConfig(num_inference_steps=2))
        >>> [image.size for _, image in generate(model, [request])]
        [(128, 128)]
    """
    from kgcli.inference.model import generate as run

    return run(model, requests, on_step, batch_size)


def edit(
    model: Model, image: str, instruction: str, *, seed: int | None = None, sampling: SamplingConfig | None = None
) -> Image.Image:
    """Carry out an instruction on an image: `generate` with a prompt that begins with the image.

    Example:
        >>> from kgcli.config import SamplingConfig
        >>> model = load(device="cpu")
        >>> edit(model, "nano/cat.png", "add a hat", seed=1, sampling=SamplingConfig(num_inference_steps=2)).size
        (128, 128)
    """
    from kgcli.inference.request import edit_prompt, make_request, random_seed

    seed = random_seed() if seed is None else seed
    request = make_request(model.folder, edit_prompt(image, instruction), seed=seed, sampling=sampling)
    return next(generate(model, [request]))[1]


def explain(model: Model, request: Request, **options: Any) -> Explanation:
    """Generate an image and map which part of its prompt shaped which region; see
    `kgcli.inference.explain.maps.explain`.

    Example:
        >>> from kgcli.config import SamplingConfig
        >>> from kgcli.inference.request import make_request
        >>> model = load(device="cpu")
        >>> request = make_request(model.folder, "<image:nano/cat.png> in the snow", sampling=SamplingConfig(steps=2))
        >>> [part.label for part in explain(model, request).parts]
        ['cat.png', 'in', 'the', 'snow']
    """
    from kgcli.inference.explain.maps import explain as run

    return run(model, request, **options)


def encode(folder: ModelFolder, request: Request, out: Path, **options: Any) -> dict[str, list[int]]:
    """Write the conditioning of a request to a file; see `kgcli.inference.conditioning.encode_to_file`.

    Example:
        >>> from kgcli.inference.request import make_request
        >>> from kgcli.weights.folder import open_model
        >>> folder = open_model()
        >>> shapes = encode(folder, make_request(folder, "a cat"), Path("cond.safetensors"), device="cpu")
        >>> sorted(shapes)
        ['negative_prompt_embeds', 'prompt_embeds']
    """
    prepare(folder)
    from kgcli.inference.conditioning import encode_to_file

    return encode_to_file(folder, request, out, **options)


def prepare(folder: ModelFolder, threads: int | None = None, light: bool = False) -> None:
    """Set up the process of a command before torch loads; a process of the user's own stays as it is.

    Args:
        folder: of the model that the process computes with
        threads: of a CPU, by default as many as are fastest for the model's size; the first call decides
        light: import of diffusers only what generating needs
    """
    from kgcli import runtime

    runtime.set_threads(threads or runtime.choose_threads(folder.num_bytes))
    if light and runtime.own_process:
        from kgcli.inference.light_imports import import_diffusers

        import_diffusers()


def train(recipe: Recipe, resume: str = "auto", dry_run: bool = False) -> str:
    """Run one training stage; see `kgcli.training.loop.train`.

    Example:
        >>> from kgcli.recipe import load_recipe
        >>> train(load_recipe("smoke/vae"), dry_run=True).splitlines()[0]
        'vae: 4 steps of 8 samples -> runs/smoke/vae'
    """
    from kgcli.training.loop import train as run

    return run(recipe, resume=resume, dry_run=dry_run)


def export(checkpoint: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write the weights of a checkpoint as its run's result; see `kgcli.training.export.export_checkpoint`.

    Example:
        >>> export(Path("runs/nano/unet"), Path("unet_now"))  # doctest: +SKIP
        PosixPath('unet_now')
    """
    from kgcli.training.export import export_checkpoint

    return export_checkpoint(checkpoint, out, overwrite=overwrite)


def plan_training(recipe: Recipe, resume: str = "auto", tflops: float | None = None) -> Plan:
    """Check a recipe and count what its run would take; see `kgcli.training.checks.report.describe`.

    Example:
        >>> from kgcli.recipe import load_recipe
        >>> plan_training(load_recipe("example-data/instruct")).missing
        ()
    """
    from kgcli.training.checks.report import describe

    return describe(recipe, resume, tflops)


def evaluate(suite: str, model: Model | Path, **options: Any) -> Any:
    """Evaluate a model on the nano world's `skills` or `adapters` suite, or a diffusers folder on `base`; return the
    report.

    Example:
        >>> report = evaluate("skills", load(device="cpu"), num=4)
        >>> "ceiling" in str(report)
        True
    """
    from kgcli.evaluation.benchmarks import nano_adapters, nano_base, nano_skills

    suites: dict[str, Any] = {"skills": nano_skills, "adapters": nano_adapters, "base": nano_base}
    return suites[suite].evaluate(model, **options)
