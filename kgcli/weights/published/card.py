"""The README.md of a converted model: its origin, contents and licences."""

from __future__ import annotations

from collections.abc import Iterable

from kgcli.version import __version__

CARD_NAME = "README.md"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD15_LICENCE = "CreativeML OpenRAIL-M"

_CARD = """---
license: {license_id}
library_name: kgcli
pipeline_tag: text-to-image
tags: [kosmos-g, text-to-image, image-to-image, subject-driven-generation]
---

# {name}

KOSMOS-G ([arXiv:2310.02992](https://arxiv.org/abs/2310.02992)) as a model folder of kgcli {version}, converted from
`{source}`, {stage}. {num_parameters:,} parameters in {dtypes}.
{use}
## Licences

| part | files | licence |
|---|---|---|
| {parts} | `model*.safetensors`, `tokenizer/` | {licence} |
| vision tower: CLIP ViT-L/14, its last block trained further | `model*.safetensors` | MIT |
| image decoder, not part of this folder: {decoder} | | {decoder_licence} |

The image decoder's licence restricts the use of its images. The weights were trained on images and captions of the
web, with the biases those have.
"""
_USE = """
    kg generate "a cat <image:cat.png> in Minecraft" --model {name} -o out.png
"""
_USE_STAGE_1 = """
It has no AlignerNet yet and cannot generate: align it, then train it to generate.

    kg align RECIPE init_from.model={name}
"""


def model_card(
    name: str,
    source: str,
    stage: str,
    *,
    num_parameters: int,
    dtypes: Iterable[str],
    decoder: str,
    has_aligner: bool = True,
    licence: str = "MIT",
) -> str:
    """Return the text of a model card; `source` is the name of the weights' file, `licence` the weights' licence."""
    is_known = decoder == SD15
    parts = "language model, resampler, AlignerNet" if has_aligner else "language model, resampler"
    return _CARD.format(
        name=name,
        version=__version__,
        source=source,
        stage=stage,
        num_parameters=num_parameters,
        dtypes=", ".join(sorted(dtypes)),
        use=(_USE if has_aligner else _USE_STAGE_1).format(name=name),
        parts=f"{parts}: KOSMOS-G, code and weights" if has_aligner else parts,
        licence=licence,
        license_id="mit" if licence == "MIT" else "other",
        # A local path is not published.
        decoder=f"`{decoder}`" if decoder.count("/") == 1 and not decoder.startswith("/") else "a separate folder",
        decoder_licence=SD15_LICENCE if is_known else "see there",
    )
