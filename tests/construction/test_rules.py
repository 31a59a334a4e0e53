import numpy as np
import pytest
from PIL import Image

from kgcli.construction.crops import cut_out
from kgcli.construction.duplicates import Hashes, caption_hashes, find_repeated, image_hash
from kgcli.construction.extractors import parse_json_list, parse_list, schema_of
from kgcli.construction.filters import Blocklist, BlocklistOptions, Script, ScriptOptions
from kgcli.construction.given import nouns_by_rules
from kgcli.construction.stage import Draft, Place
from kgcli.errors import UsageError


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("a man riding a horse on the beach", ["man", "horse"]),
        ("two dogs, a cat and a red ball.", ["dogs", "cat", "ball"]),
        ("A photo of an old wooden boat in the water", ["boat"]),
        ("a woman in a hat holding three apples", ["woman", "apples"]),
        ("a tall building next to a king wearing a ring", ["building", "king", "ring"]),
        ("on the beach", []),
        ("", []),
        ("red", []),
    ],
)
def test_rules_find_the_foreground_objects_of_simple_captions(caption, nouns):
    assert nouns_by_rules(caption) == nouns


def test_the_published_parser_takes_what_the_caption_holds():
    assert parse_list(" cat,\ndog , Hat,, mouse", "a cat, a dog and a hat") == ["cat", "dog"]


def test_the_model_is_asked_as_the_published_script_asks():
    from kgcli.construction.extractors import FORM, ListExtractorOptions

    asked = FORM.format(instruction=ListExtractorOptions().instruction, caption="a cat")
    assert asked == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nExtract all objects mentioned in the caption and separate them using commas. Exclude "
        "background elements (site, location, environment) and only include foreground objects. Ensure that only nouns "
        "are included and exclude adjectives entirely.\n\n### Input:\na cat\n\n### Response:\n"
    )


def test_json_answers():
    assert parse_json_list('Sure! {"entities": ["cat", " dog "]} bye') == ["cat", "dog"]
    for answer in ("", "[]", '{"entities": [1]}', '{"entities": ["cat"', '{"things": []}'):
        assert parse_json_list(answer) is None
    names = schema_of("a red cat's hat", 3)["properties"]["entities"]["items"]["enum"]
    assert "red cat's hat" in names and "cat's" in names and len(names) == 4 + 3 + 2


def mask_of(shape, *boxes):
    mask = np.zeros(shape, bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


def test_a_cut_is_a_square_about_the_largest_region():
    image = Image.fromarray(np.arange(60 * 60 * 3, dtype=np.uint8).reshape(60, 60, 3) // 2)
    cut = cut_out(image, mask_of((60, 60), (2, 2, 6, 6), (20, 30, 40, 38)), 20)
    assert np.array_equal(cut.crop, image.crop((24, 20, 44, 40)))
    white = np.array(cut.on_white)
    assert (white[:, :6] == 255).all() and (white[:, 14:] == 255).all()
    assert np.array_equal(white[:, 6:14], np.array(cut.crop)[:, 6:14])
    assert cut_out(image, mask_of((60, 60)), 20) is None


@pytest.mark.parametrize("box", [(0, 0, 10, 60), (50, 50, 60, 60), (0, 0, 60, 60), (5, 0, 6, 60)])
def test_a_cut_stays_inside_the_image(box):
    image = Image.new("RGB", (60, 40), "red")
    cut = cut_out(image, mask_of((40, 60), box) if box[0] < 40 else mask_of((40, 60), (39, 59, 40, 60)), 16)
    assert cut.crop.size == (16, 16) and (np.array(cut.crop) == (255, 0, 0)).all()


def test_masks_grow_with_the_size_of_the_image():
    image = Image.new("RGB", (400, 400), "red")
    cut = cut_out(image, mask_of((400, 400), (100, 100, 200, 200)), 100)
    assert (np.array(cut.on_white) == (255, 0, 0)).all(), "the square is that of the grown mask"
    grown = cut_out(image, mask_of((400, 400), (100, 100, 200, 200), (202, 100, 203, 101)), 100)
    assert grown is not None, "parts a few pixels apart are one region"


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)).resize((256, 256))


def test_a_resized_or_compressed_image_is_a_duplicate_and_another_is_none(tmp_path):
    first = picture(0)
    first.save(tmp_path / "a.jpg", quality=60)
    images = [
        first,
        first.resize((180, 180)),
        Image.open(tmp_path / "a.jpg"),
        *(picture(seed) for seed in range(1, 30)),
    ]
    shard = Hashes([str(n) for n in range(len(images))], [image_hash(one) for one in images], [()] * len(images))
    assert find_repeated([shard], image_bits=2, caption_likeness=1.0) == dict.fromkeys("12", "image repeated")
    assert find_repeated([shard], image_bits=-1, caption_likeness=1.0) == {}


def test_alike_captions_are_found_across_shards():
    captions = ["a cat sits on the red mat by the door", "A CAT sits on the red mat by the door", "a dog runs", ""]
    alike = "a cat sits on the red mat by the window"
    shards = [
        Hashes(["a", "b", "c", "d"], [0, 1 << 20, 5 << 30, 7 << 40], [caption_hashes(one) for one in captions]),
        Hashes(["e", "f"], [9 << 10, 11 << 50], [caption_hashes(alike), ()]),
    ]
    assert find_repeated(shards, image_bits=-1, caption_likeness=1.0) == {"b": "caption repeated"}
    assert find_repeated(shards, image_bits=-1, caption_likeness=0.6) == {
        "b": "caption repeated",
        "e": "caption repeated",
    }


def filtered(stage, caption):
    one = Draft("0", "here", Image.new("RGB", (8, 8)), caption)
    stage.apply([one])
    return one.dropped


def test_scripts_and_blocklists(tmp_path):
    script = Script(ScriptOptions(), Place())
    assert filtered(script, "un chat, 3 chiens") == "" and filtered(script, "\u732b") and filtered(script, "123")
    (tmp_path / "words.txt").write_text("# offensive\nbad word\nworse\n")
    block = Blocklist(BlocklistOptions(file=str(tmp_path / "words.txt")), Place())
    assert filtered(block, "a Bad Word here") == filtered(block, "worse") == "a word of the blocklist"
    assert filtered(block, "a badword, worsened") == ""
    (tmp_path / "words.txt").write_text("\n")
    with pytest.raises(UsageError, match="holds no words"):
        Blocklist(BlocklistOptions(file=str(tmp_path / "words.txt")), Place())


def test_languages():
    pytest.importorskip("langdetect")
    from kgcli.construction.filters import Language, LanguageOptions

    stage = Language(LanguageOptions(), Place())
    assert filtered(stage, "a cat lies on the beach near the old house") == ""
    assert filtered(stage, "eine Katze liegt am Strand neben dem alten Haus") == "not in the language en"
    assert filtered(stage, "123") == "language unknown"
