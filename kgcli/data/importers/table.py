"""All importers by name."""

from __future__ import annotations

import difflib

from kgcli.data.importers.base import Importer
from kgcli.data.importers.coco import Coco
from kgcli.data.importers.documents import Mmc4, Obelics
from kgcli.data.importers.hugging_face import HuggingFace
from kgcli.data.importers.img2dataset import Img2Dataset
from kgcli.data.importers.instructpix2pix import InstructPix2Pix
from kgcli.data.importers.open_images import OpenImages
from kgcli.data.importers.own import CaptionedFolder, PlainText, Prompts, Table
from kgcli.data.importers.published import PublishedInstructPix2Pix, PublishedLaion, PublishedOpenImage
from kgcli.errors import UsageError

_ALL: tuple[type[Importer], ...] = (
    *(CaptionedFolder, Table, Prompts, PlainText, HuggingFace, Img2Dataset, Coco, OpenImages, InstructPix2Pix),
    *(Mmc4, Obelics, PublishedLaion, PublishedInstructPix2Pix, PublishedOpenImage),
)
IMPORTERS: dict[str, Importer] = {kind.name: kind() for kind in _ALL}


def find_importer(name: str) -> Importer:
    """Return the importer of a layout. Raises: UsageError."""
    if name not in IMPORTERS:
        near = difflib.get_close_matches(name, IMPORTERS, 1, 0.5)
        raise UsageError(
            f"there is no layout {name!r}; "
            + (f"did you mean {near[0]}?" if near else f"there are {', '.join(IMPORTERS)}")
        )
    return IMPORTERS[name]
