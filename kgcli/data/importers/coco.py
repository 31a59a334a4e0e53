"""COCO captions: annotations/captions_*.json and a folder of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from kgcli.data.folders import read_below
from kgcli.data.importers.base import Filled, ImportOptions, Item, existing, pair_of
from kgcli.errors import MissingError
from kgcli.reading import read_json

MAX_ANNOTATION_BYTES = 2**30  # captions_train2017.json has 92 MB


class Coco:
    """Captioned images in the order of the file's images."""

    name = "coco"
    layout = "captions_*.json of COCO, with --images the folder of its images"
    uses = frozenset({"images", "all_captions"})

    def items(self, source: str, options: ImportOptions) -> Iterator[Item]:
        """Yield the images that have a caption."""
        path = existing(source, what="file of captions")
        images = options.images_of(self.name, "as train2017/")
        value = read_json(path, max_bytes=MAX_ANNOTATION_BYTES)
        if not isinstance(value, dict) or not all(
            isinstance(value.get(key), list) for key in ("images", "annotations")
        ):
            raise MissingError(f"{path} has no lists images and annotations")
        captions: dict[str, list[str]] = {}
        for annotation in value["annotations"]:
            if isinstance(annotation, dict) and isinstance(annotation.get("caption"), str):
                captions.setdefault(str(annotation.get("image_id")), []).append(annotation["caption"].strip())
        for image in value["images"]:
            name = str(image.get("file_name")) if isinstance(image, dict) else str(image)[:100]
            told = captions.get(str(image.get("id")), []) if isinstance(image, dict) else []
            yield Item(name, partial(_read, images, name, told if options.all_captions else told[:1]))


def _read(folder: Path, name: str, captions: list[str]) -> Iterable[Filled]:
    if not captions:
        raise MissingError(f"{name} has no caption")
    data = read_below(folder, name, name)
    return [pair_of(data, caption, name) for caption in captions]
