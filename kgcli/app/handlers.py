"""Actions of the page's buttons and the API: values of fields in, images and a status line out. No gradio in here."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kgcli.app.limits import MAX_IMAGES
from kgcli.app.prompts import edit_request, read_lines, read_request
from kgcli.app.replay import Restored, restore
from kgcli.app.settings import Offer, check_sampling, make_adapters, read_seeds
from kgcli.app.status import error_status, one_line, status
from kgcli.app.studio import CancelledError, Progress, Studio, noted
from kgcli.app.uploads import Upload, read_uploads
from kgcli.config import SamplingConfig
from kgcli.errors import KgError, UsageError
from kgcli.inference.adapters.named import Adapters
from kgcli.inference.request import Request

SAMPLING = ("steps", "guidance_scale", "width", "height", "scheduler")
ADAPTERS = ("lora", "lora_scale", "control", "control_images", "control_scale", "ready")
Shown = tuple[dict[str, Any] | None, str]  # value of a gallery, status line as HTML


class Handlers:
    """The actions of one page over a studio."""

    def __init__(self, studio: Studio, offer: Offer) -> None:
        self.studio = studio
        self.folder = studio.folder
        self.offer = offer
        self.most_images = min(self.folder.cfg.max_images, MAX_IMAGES)

    def generate(self, fields: Mapping[str, Any], visitor: str, on_progress: Progress | None = None) -> Iterator[Shown]:
        """Yield the growing gallery of a prompt."""
        yield from self._shown(lambda: self._prompt_requests(fields), visitor, on_progress)

    def edit(self, fields: Mapping[str, Any], visitor: str, on_progress: Progress | None = None) -> Iterator[Shown]:
        """Yield the growing gallery of an edit."""
        yield from self._shown(lambda: self._edit_requests(fields), visitor, on_progress)

    def batch(self, fields: Mapping[str, Any], visitor: str, on_progress: Progress | None = None) -> Iterator[Shown]:
        """Yield the growing gallery of a batch, one prompt a line; a bad line is reported and the others go on."""
        faults: list[str] = []

        def requests() -> list[Request]:
            uploads = self._uploads(fields)
            found = []
            for number, line in enumerate(read_lines(_text(fields, "lines")), start=1):
                try:
                    found.append(self._request(line, uploads, fields, all_used=False))
                except KgError as error:
                    faults.append(f"line {number}: {one_line(error)}")
            if not found:
                raise UsageError("; ".join(faults))
            return [replace(one, seed=found[0].seed) for one in found]

        yield from self._shown(requests, visitor, on_progress, faults)

    def compare(self, fields: Mapping[str, Any], sides: Sequence[Mapping[str, Any]], visitor: str,
                on_progress: Progress | None = None) -> Iterator[Shown]:  # fmt: skip
        """Yield the images of one prompt and seed with two settings."""

        def requests() -> list[Request]:
            first = self._prompt_requests({**fields, **sides[0], "num_images": 1})
            second = self._prompt_requests({**fields, **sides[1], "num_images": 1, "seed": first[0].seed})
            return [*first, *second]

        yield from self._shown(requests, visitor, on_progress, labels=("A", "B"))

    def images_of(self, fields: Mapping[str, Any], on_progress: Progress | None = None) -> list[dict[str, Any]]:
        """Return the images of a prompt, or of an edit if there is an instruction, for the API.

        Raises: KgError.
        """
        requests = self._edit_requests(fields) if fields.get("instruction") else self._prompt_requests(fields)
        return [result.tile() for result in self.studio.generate(requests, "", on_progress)]

    def restore(self, item: Any, trays: Sequence[Any]) -> Restored:
        """Return the values of the fields that made a dropped image; inputs are looked for in the trays.

        Raises: KgError.
        """
        held: list[tuple[Any, Upload]] = []
        for items in trays:
            held += zip(items or [], read_uploads(items, most=MAX_IMAGES), strict=True)
        return restore(item, self.studio.model, held, self.offer)

    def cancel(self, visitor: str) -> str:
        """Cancel what a visitor has at work; return a status line."""
        return status("cancelling" if self.studio.cancel(visitor) else "nothing is being generated")

    def _shown(
        self,
        make: Any,
        visitor: str,
        on_progress: Progress | None,
        faults: Sequence[str] = (),
        labels: Sequence[str] = (),
    ) -> Iterator[Shown]:
        """Yield gallery and status line while the requests that `make` returns are generated."""
        run, tiles = secrets.token_hex(8), []
        try:
            with noted() as notes:
                requests = make()
            for number, result in enumerate(self.studio.generate(requests, visitor, on_progress)):
                tiles.append(result.tile(labels[number] if labels else ""))
                done = f"{len(tiles)} of {len(requests)} images, seed {requests[0].seed}"
                yield {"run": run, "items": list(tiles)}, status(done, notes=[*notes, *faults])
        except CancelledError as error:
            yield ({"run": run, "items": list(tiles)} if tiles else None), status(str(error))
        except KgError as error:
            yield None, error_status(error)

    def _prompt_requests(self, fields: Mapping[str, Any]) -> list[Request]:
        seeds = read_seeds(fields.get("seed"), fields.get("num_images", 1))
        first = self._request(_text(fields, "prompt"), self._uploads(fields), {**fields, "seed": seeds[0]})
        return [replace(first, seed=seed) for seed in seeds]

    def _edit_requests(self, fields: Mapping[str, Any]) -> list[Request]:
        seeds = read_seeds(fields.get("seed"), fields.get("num_images", 1))
        first = edit_request(
            self.folder,
            read_uploads(fields.get("images"), most=1),
            _text(fields, "instruction"),
            sampling=self._sampling(fields),
            adapters=self._adapters(fields),
        )
        return [replace(first, seed=seed) for seed in seeds]

    def _request(
        self, text: str, uploads: Sequence[Upload], fields: Mapping[str, Any], *, all_used: bool = True
    ) -> Request:
        return read_request(
            self.folder,
            text,
            uploads,
            negative_prompt=_text(fields, "negative_prompt"),
            seed=read_seeds(fields.get("seed"), 1)[0],
            sampling=self._sampling(fields),
            adapters=self._adapters(fields),
            all_used=all_used,
        )

    def _uploads(self, fields: Mapping[str, Any]) -> list[Upload]:
        return read_uploads(fields.get("images"), most=self.most_images)

    def _sampling(self, fields: Mapping[str, Any]) -> SamplingConfig:
        return check_sampling(**{name: fields.get(name) for name in SAMPLING})

    def _adapters(self, fields: Mapping[str, Any]) -> Adapters:
        given = {name: fields[name] for name in ADAPTERS if name in fields}
        given["control_images"] = read_uploads(given.get("control_images"), most=1)
        return make_adapters(self.folder, self.offer, **given)


def _text(fields: Mapping[str, Any], name: str) -> str:
    """Return a text field. Raises: UsageError."""
    value = fields.get(name) or ""
    if not isinstance(value, str):
        raise UsageError(f"{name} is not text")
    return value
