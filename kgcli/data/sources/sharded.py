"""Shards as a source: any number of them, anywhere, in a window-shuffled order that has no state."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from typing import Any

import numpy as np

from kgcli.data.sample import Fragments, Sample
from kgcli.data.shards.index import UNTARGETED, Index, describe_fault, open_index
from kgcli.data.shards.order import WindowOrder
from kgcli.data.shards.read import Words, is_lost, read_fragments, read_sample
from kgcli.data.shards.storage import list_shards
from kgcli.data.sources.base import Part
from kgcli.data.sources.rows import RowSource
from kgcli.errors import MissingError, PassingError
from kgcli.recipe import OnFault, SourceConfig

_log = logging.getLogger(__name__)


class ShardSource(RowSource):
    """The rows of an index, read as byte ranges."""

    def __init__(
        self,
        index: Index,
        words: Words,
        *,
        seed: tuple[int, ...],
        window: int | None = 16,
        faults: OnFault = "stop",
    ) -> None:
        """Args:
        words: how the words of a sample are chosen
        seed: of orders, words and replacements
        window: shards shuffled together; None keeps the order of the files
        faults: what a bad row does
        """
        self.index = index
        self.words = words
        self.order = WindowOrder([shard.rows for shard in index.shards], window=window, seed=seed)
        super().__init__(_gives(index, words), self.order.num_rows, seed, faults)

    def row_of(self, index: int) -> int:
        """Return the row of a sample."""
        return self._drawn(index)[0]

    def first_row(self, index: int) -> int:
        """Return the row of a sample before what `as_published` loses is replaced."""
        return self.order.row(index)

    def load(self, row: int, number: int) -> Sample:
        """Return a row as the sample of a number. Raises: MissingError that names shard and key."""
        return self._load(row, number, self.words)

    def stand_in(self, row: int, number: int) -> Sample:
        """Return a row in the place of a bad one.

        One that the published loader would lose by the number's draw keeps its nouns, as if drawn anew until it is
        not lost; so the number decides no row, and cached moments are those of the row that is shown.

        Raises: MissingError, also for a row that is lost by every draw.
        """
        words = self.words
        if words.as_published and is_lost(self.index.row(*self._place(row)), words, self._rng(number)):
            if self._drops_all:
                raise MissingError("as_published loses it")
            words = replace(words, drop_entity_text=0.0)
        return self._load(row, number, words)

    def _load(self, row: int, number: int, words: Words) -> Sample:
        found = self.index.row(*self._place(row))
        try:
            return read_sample(found, words, self._rng(number))
        except MissingError as error:
            if self.faults == "skip":
                raise
            advice = "" if isinstance(error, PassingError) else "; `data.faults: skip` shows another row in its place"
            raise type(error)(f"{found.name}: {error}{advice}") from None

    def told(self, row: int, number: int) -> Fragments:
        """Return the fragments of a row, of which the texts alone are read."""
        found = self.index.row(*self._place(row))
        return read_fragments(found, self.words, self._rng(number))

    def place_of(self, row: int) -> tuple[str, str]:
        """Return shard and key of a row."""
        found = self.index.row(*self._place(row))
        return found.place, found.key

    def texts(self, num: int, seed: int) -> list[str]:
        """Return the words of `num` rows, or of all there are."""
        assert self.num_rows is not None
        num = min(num, self.num_rows)
        order = np.random.default_rng([22, seed]).choice(self.num_rows, num, replace=False)  # without listing all rows
        return [text for row in order if (text := self.read(int(row)).words)]

    def content(self) -> dict[str, Any]:
        """Return the hashes of all shards' rows; where faults are skipped, the states of the files too."""
        found = {"shards": [shard.fingerprint for shard in self.index.shards], "num": self.num_rows}
        if self.faults == "stop":
            return found
        return {**found, "files": [shard.stamp for shard in self.index.shards], "drops_all": self._drops_all}

    def parts(self) -> list[Part]:
        """Return the shards, for caches that are kept by shard."""
        starts = self.order.starts
        # Rows of any shard may stand for the bad ones of another.
        whole = json.dumps(self.fingerprint(), sort_keys=True).encode() if self.faults == "skip" else None
        chain = None if whole is None else hashlib.sha256(whole).hexdigest()
        return [
            Part({"shard": shard.fingerprint, "chain": chain}, int(starts[number]), shard.rows)
            for number, shard in enumerate(self.index.shards)
            if shard.rows
        ]

    def _drawn(self, index: int) -> tuple[int, int]:
        """Return the row of a sample and the number that decides its words.

        What the published loader loses is replaced by the next of the row's chain, which draws anew. That is decided
        here, not where rows are read, so that cached moments are those of the row that is shown.
        """
        row = self.first_row(index)
        if not self.words.as_published:
            return row, index
        for num_lost, one in enumerate(self._chain(row)):
            number = index + (num_lost << 64)  # no other sample's number
            try:
                lost = is_lost(self.index.row(*self._place(one)), self.words, self._rng(number))
            except PassingError:
                raise
            except MissingError:  # a fault of the row, for `sample`
                lost = False
            if not lost:
                return one, number
        raise MissingError(f"{' '.join(self.place_of(row))}: as_published loses it and all rows drawn for it")

    @property
    def _drops_all(self) -> bool:
        """True if a caption that begins with its noun is lost by every draw."""
        return self.words.as_published and self.words.drop_entity_text >= 1

    def _rng(self, number: int) -> np.random.Generator:
        """Return the randomness of a sample's words."""
        return np.random.default_rng([34, *self.seed, number])

    def _place(self, row: int) -> tuple[int, int]:
        shard = self.order.shard_of(row)
        return shard, row - int(self.order.starts[shard])


def open_shards(cfg: SourceConfig, words: Words, *, seed: tuple[int, int], faults: OnFault) -> ShardSource:
    """Open the shards of a source.

    Raises: MissingError: none is there, one is damaged or missing and faults stop, or the filters leave no row.
    """
    index = open_index(list_shards(cfg.path), cfg.filters)
    for shard in index.shards:
        if shard.fault and faults == "stop":
            raise MissingError(f"{describe_fault(shard)}; `data.faults: skip` goes on without the others")
        if shard.fault:
            _log.warning(describe_fault(shard))
    dropped = sum(shard.dropped for shard in index.shards)
    rows = sum(shard.rows for shard in index.shards)
    if not rows:
        raise MissingError(f"data.sources: {cfg.path} holds no row" + (f"; {dropped} were dropped" if dropped else ""))
    if dropped:
        _log.info("data.sources: %s: %d rows, %d dropped by filters or as no sample", cfg.path, rows, dropped)
    return ShardSource(index, words, seed=seed, window=cfg.window if cfg.shuffle else None, faults=faults)


def _gives(index: Index, words: Words) -> frozenset[str]:
    """Return the fields that samples of all kinds in an index have."""
    kinds = {kind for shard in index.shards for kind in shard.kinds}
    pair = {"read": {"fragments", "images"}, "match": {"images"}, "generate": {"fragments"}}[words.use]
    of_kind = {
        "text": {"fragments", "caption"},
        "pair": {"caption", "target", *pair},
        "image": {"target", *({"images"} if words.use == "match" else set())},
        "interleaved": {"fragments"},
        "compositional": {"fragments", "target"},
        "edit": {"fragments", "target"},
        "prompt": {"fragments", "target"},
        UNTARGETED: {"fragments"},
    }
    # If no row can be read, claim every field; reading the first row reports the fault.
    return frozenset(set.intersection(set.union(*of_kind.values()), *(of_kind[kind] for kind in kinds)))
