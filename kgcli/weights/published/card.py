"""The README.md of a converted model: what it is, what made it, under whose licences its parts are."""

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

The image decoder's licence restricts what its pictures may be used for. The weights were trained on pictures and
captions of the web, with the biases those have.
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
    """The text of a model card; `source` is the name of the file the weights were in, `licence` that of its weights."""
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
        # A folder's path is its owner's business.
        decoder=f"`{decoder}`" if decoder.count("/") == 1 and not decoder.startswith("/") else "a folder of its own",
        decoder_licence=SD15_LICENCE if is_known else "see there",
    )
