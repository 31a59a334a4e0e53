"""The published loaders' training sequences, from their own TSV files through our importers.

`loader_pieces.json` holds the ids that the published tokenizer gives each text of the sequences, so that no file of
it is needed; with KG_TOKENIZER_DIR the tokenizer itself is asked.
"""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from kgcli.config import SpecialIds
from kgcli.data.images import decode_image
from kgcli.data.importers.base import ImportOptions, Skipped
from kgcli.data.importers.published import passing_tags
from kgcli.data.importers.table import find_importer
from kgcli.data.prompt import encode
from kgcli.data.shards.fragments import compositional_fragments, edit_fragments
from kgcli.data.shards.records import Compositional, Edit, Pair
from kgcli.data.tokenizer import Tokenizer

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = json.loads((FIXTURES / "loaders.json").read_text("utf-8"))
NUM_SLOTS = 8
WHOLE = 200  # id of the whole image; those of tag k: 10 k + 1 with background, 10 k + 2 on white
DROP_PROBABILITY = 0.5


class Pieces:
    """The published tokenizer's answers."""

    special_ids = SpecialIds()

    def __init__(self) -> None:
        self.ids = json.loads((FIXTURES / "loader_pieces.json").read_text("utf-8"))

    def encode(self, text):
        return self.ids[text.strip()]


@pytest.fixture(scope="module")
def tokenizer():
    folder = os.environ.get("KG_TOKENIZER_DIR")
    return Tokenizer.load(folder) if folder else Pieces()


def image(number):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def number_of(data):
    return decode_image(data).getpixel((0, 0))[0]


def import_line(tmp_path, layout, cells, **options):
    (tmp_path / "line.tsv").write_text("\t".join(cells) + "\n", "utf-8")
    (item,) = find_importer(layout).items(str(tmp_path), ImportOptions(**options))
    return list(item.read())


def check(case, fragments, tokenizer):
    found = encode(fragments, tokenizer, NUM_SLOTS, eos=True)
    boi = tokenizer.special_ids.boi
    assert found.token_ids == case["tokens"]
    assert [int(value) for value in found.image_mask] == case["input_mask"]
    assert [int(token != boi) for token in found.token_ids] == case["loss_mask"]


@pytest.mark.parametrize("case", GOLDEN["openimage"], ids=lambda case: case["caption"])
def test_openimage_sequences_and_the_lost_samples(tmp_path, case, tokenizer):
    tags = case["tags"]
    assert passing_tags(case["caption"], tags) == case["tags_passing_filter"]
    crops = [image(10 * place + side) for place in range(len(tags)) for side in (1, 2)]
    cells = [case["caption"], ",".join(tags), image(WHOLE), *crops]
    ((record, images),) = import_line(tmp_path, "published-openimage", cells)
    drop = case["uniform_draws"][0] < DROP_PROBABILITY
    assert drop == case["drop_entity_text"]
    if isinstance(record, Pair):
        fragments, shown = (record.caption,), []
    else:
        assert isinstance(record, Compositional)
        fragments = compositional_fragments(record, drop_entity_text=drop, as_published=True)
        draws = case["uniform_draws"][1:]
        chosen = [one.crop_on_white if draw <= 0.5 else one.crop for one, draw in zip(record.entities, draws)]  # noqa: B905
        shown = [number_of(images[name]) for name in chosen]
    if case["num_docs"] == 0:
        assert fragments is None, "the published loader loses it"
        kept = compositional_fragments(record, drop_entity_text=drop)
        assert kept is not None and kept[0] is None, "we do not"
        return
    check(case, fragments, tokenizer)
    assert [*shown, number_of(images[record.image])] == case["image_ids"]


@pytest.mark.parametrize("case", GOLDEN["instructpix2pix"], ids=lambda case: case["edit_instruction"])
def test_instructpix2pix_sequences(tmp_path, case, tokenizer):
    images = [image(10 * seed + side) for seed in range(case["num_seeds"]) for side in (1, 2)]
    cells = [case["input_caption"], case["edit_instruction"], *images]
    found = import_line(tmp_path, "published-instructpix2pix", cells)
    assert len(found) == case["num_seeds"]
    record, files = found[case["seed_index"]]
    assert isinstance(record, Edit)
    check(case, edit_fragments(record, keep_caption=not case["drop_input_caption"]), tokenizer)
    assert [number_of(files[record.before]), number_of(files[record.after])] == case["image_ids"]


@pytest.mark.parametrize("case", GOLDEN["laion"], ids=lambda case: case["caption"])
def test_laion_sequences(tmp_path, case, tokenizer):
    cells = ["0", case["caption"], image(1), case["width"], case["height"]]
    if case["num_docs"] == 0:
        with pytest.raises(Skipped):
            import_line(tmp_path, "published-laion", cells)
        return
    ((record, _),) = import_line(tmp_path, "published-laion", cells)
    found = encode((record.caption,), tokenizer, NUM_SLOTS, eos=True)
    assert found.token_ids == case["tokens"] and not any(found.image_mask)


def test_a_line_that_breaks_the_published_loader_is_left_out_on_request(tmp_path):
    cells = ["a cat (big", "cat,(big", image(WHOLE), *[image(1)] * 4]
    ((record, _),) = import_line(tmp_path, "published-openimage", cells)
    assert [entity.noun for entity in record.entities] == ["cat"]
    with pytest.raises(Skipped, match="no pattern"):
        import_line(tmp_path, "published-openimage", cells, as_published=True)
