"""Maps of which reference, and which word, shaped which region of a generated image.

The map of a part of the prompt is the change of the U-Net's prediction when that part is left out, at the noisy latents
from which the image was generated: leave-one-out at a fixed trajectory. On pairs of subjects it follows what really
happens when a reference is exchanged better than attention maps do; `tests/bench/bench_explain.py` compares them.

Shape letters: M parts, B rows, C channels, H W latent height and width, X Y image width and height in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kgcli.config import MAX_BATCH
from kgcli.errors import UsageError
from kgcli.inference.explain.parts import Part, parts_of
from kgcli.runtime import memory_errors

if TYPE_CHECKING:
    from kgcli.inference.denoise import StepCallback
    from kgcli.inference.model import Model
    from kgcli.inference.request import BatchRow, Request

NUM_STEPS = 5  # steps of the generation that are looked at, evenly spread; more hardly change the maps


@dataclass(frozen=True, eq=False)
class Explanation:
    """A generated image with one map per part of its prompt.

    Shapes:
        maps_MYX: (parts, height, width), the effect of each part in units of the U-Net's prediction, 0 or more
    """

    request: Request
    image: Image.Image
    parts: tuple[Part, ...]
    maps_MYX: NDArray[np.float32]

    @property
    def shares(self) -> list[float]:
        """The effect of each part, as a fraction of the effects of its kind (references or words)."""
        totals = self.maps_MYX.mean(axis=(1, 2)).astype(float)
        kinds = np.array([part.image is not None for part in self.parts])
        sums = [float(totals[kinds == kind].sum()) for kind in kinds]
        return [total / whole if whole else 0.0 for total, whole in zip(totals.tolist(), sums, strict=True)]

    @property
    def references(self) -> list[int]:
        """Indices of the parts that are references."""
        return [index for index, part in enumerate(self.parts) if part.image is not None]

    def regions(self) -> NDArray[np.intp]:
        """Return for every pixel the number (from 1) of the reference that shaped it most, (height, width).

        Maps are compared relative to their means, so that a strong reference does not take everything.
        """
        maps_MYX = self.maps_MYX[self.references]
        if not len(maps_MYX):
            raise UsageError("the prompt holds no image, so there are no regions of references")
        return relative(maps_MYX).argmax(axis=0) + 1


def explain(
    model: Model,
    request: Request,
    *,
    words: bool = True,
    num_steps: int = NUM_STEPS,
    on_step: StepCallback | None = None,
) -> Explanation:
    """Generate the image of a request and map the effect of every reference and, with `words`, of every word.

    Costs `num_steps` U-Net calls per part, in batches, besides the image itself.

    Raises: UsageError for a prompt without parts.

    Example:
        >>> from kgcli import engine
        >>> from kgcli.config import SamplingConfig
        >>> from kgcli.inference.request import make_request
        >>> model = engine.load(device="cpu")
        >>> sampling = SamplingConfig(num_inference_steps=2)
        >>> text = "<image:nano/cat.png> and <image:nano/dog.png> in the snow"
        >>> explanation = explain(model, make_request(model.folder, text, sampling=sampling), words=False)
        >>> [part.label for part in explanation.parts], explanation.maps_MYX.shape
        (['cat.png', 'dog.png'], (2, 128, 128))
    """
    from kgcli.inference.model import generate

    parts = parts_of(request.prompt, words=words)
    if not parts:
        raise UsageError("the prompt holds nothing to explain; give it an image or words")
    pipeline, sampling = model.pipeline, request.sampling.over(model.folder.cfg.generation)
    with _Recorder(pipeline.decoder.unet, request.row) as inputs:
        ((made, image),) = generate(model, [request], on_step)
    with memory_errors(), torch.no_grad(), model.attached(request.adapters, sampling.size):
        embeds, _ = pipeline.encoder.encode_request(request)
        maps_MHW = _effects(model, inputs.spread(num_steps), embeds, _encode_without(model, request, parts))
    return Explanation(made, image, parts, _to_pixels(maps_MHW, sampling.size))


def relative(maps_MYX: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return maps divided by their means; a map of zeros stays."""
    means_M = maps_MYX.mean(axis=(1, 2), keepdims=True)
    return (maps_MYX / np.where(means_M > 0, means_M, 1)).astype(np.float32)


def _encode_without(model: Model, request: Request, parts: Sequence[Part]) -> Tensor:
    """Return the conditioning of the prompt without each part, (M, S, d)."""
    images = [file.load() for file in request.images]
    encode = model.pipeline.encoder.encode
    return torch.cat([encode([part.without], [[images[index] for index in part.images]]) for part in parts])


def _effects(
    model: Model, inputs: Sequence[tuple[Tensor, Any]], embeds_1Sd: Tensor, without_MSd: Tensor
) -> NDArray[np.float32]:
    """Return the change of the U-Net's prediction without each part, (M, H, W), averaged over inputs."""
    unet = model.pipeline.decoder.unet
    total: NDArray[np.float32] | None = None
    rows_RSd = torch.cat([embeds_1Sd, without_MSd]).to(unet.dtype)
    for noisy_1CHW, timestep in inputs:
        predicted_RCHW = torch.cat(
            [
                unet(noisy_1CHW.expand(len(rows), -1, -1, -1), timestep, encoder_hidden_states=rows).sample.float()
                for rows in rows_RSd.split(MAX_BATCH)
            ]
        )
        effect_MHW = (predicted_RCHW[1:] - predicted_RCHW[:1]).square().mean(dim=1).sqrt().cpu().numpy()
        total = effect_MHW if total is None else total + effect_MHW
    assert total is not None, "a generation has at least one step"
    return total / np.float32(len(inputs))


def _to_pixels(maps_MHW: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize maps from latents to pixels, (M, Y, X)."""
    resized = [Image.fromarray(one).resize(size, Image.Resampling.BILINEAR) for one in maps_MHW]
    return np.stack([np.asarray(one, dtype=np.float32) for one in resized])


class _Recorder:
    """Context in which the conditional inputs of every U-Net call are kept, of one row: (1, C, H, W) and timestep."""

    def __init__(self, unet: Any, row: BatchRow) -> None:
        self.unet = unet
        self.from_end = row.size - row.index  # with guidance the conditional rows are the last
        self.inputs: list[tuple[Tensor, Any]] = []

    def __enter__(self) -> _Recorder:
        self.handle = self.unet.register_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *failure: object) -> None:
        self.handle.remove()

    def spread(self, num: int) -> list[tuple[Tensor, Any]]:
        """Return `num` of the inputs, evenly spread."""
        if num < 1:
            raise UsageError(f"num_steps is {num}; it must be at least 1")
        chosen = np.linspace(0, len(self.inputs), min(num, len(self.inputs)), endpoint=False)
        offset = len(self.inputs) / (2 * max(len(chosen), 1))
        return [self.inputs[int(at + offset)] for at in chosen]

    def _keep(self, unet: Any, args: tuple[Any, ...]) -> None:
        noisy_BCHW, timestep = args[:2]
        row = len(noisy_BCHW) - self.from_end
        self.inputs.append((noisy_BCHW[row : row + 1].clone(), timestep))
