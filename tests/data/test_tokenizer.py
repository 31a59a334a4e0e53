"""The tokenizer: published ids from SentencePiece pieces, errors for damaged files."""

from __future__ import annotations

import pytest

from kgcli.data.tokenizer import Tokenizer, train_sentencepiece
from kgcli.errors import MissingError

CAPTIONS = ["a red cat on the beach", "two dogs in the snow", "a cat in Minecraft", "a blue car in the city"] * 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_sentencepiece(CAPTIONS, 60, tmp_path_factory.mktemp("tokenizer"))


def test_specials_follow_the_pieces_in_published_order(tokenizer):
    ids = tokenizer.special_ids
    specials = [ids.mask, ids.eod, ids.boi, ids.eoi, ids.eoc, ids.eol]
    assert specials == list(range(tokenizer.vocab_size - 6, tokenizer.vocab_size))
    assert (ids.bos, ids.pad, ids.eos, ids.unk) == (0, 1, 2, 3)


def test_text_survives_encoding(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a red cat in the snow")) == "a red cat in the snow"
    assert min(tokenizer.encode("a red cat")) >= 4


def test_blanks_at_the_ends_do_not_count(tokenizer):
    assert tokenizer.encode("  a cat ") == tokenizer.encode("a cat")
    assert tokenizer.encode("   ") == []


def test_unknown_characters_become_unk(tokenizer):
    assert tokenizer.special_ids.unk in tokenizer.encode("\u732b")


def test_typed_special_symbols_are_plain_text(tokenizer):
    typed = tokenizer.encode("<image> </s>")
    assert tokenizer.special_ids.boi not in typed and tokenizer.special_ids.eos not in typed


def test_a_dictionary_gives_the_ids(tokenizer, tmp_path):
    folder = train_sentencepiece(CAPTIONS, 60, tmp_path)
    pieces = [folder._processor.id_to_piece(i) for i in range(3, folder._processor.vocab_size())]
    (tmp_path / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in reversed(pieces)), encoding="utf-8")
    reordered = Tokenizer.load(tmp_path)
    assert reordered.vocab_size == tokenizer.vocab_size
    highest = 4 + len(pieces) - 1
    assert reordered.encode("cat") == [highest - (token - 4) for token in tokenizer.encode("cat")]


def test_training_is_deterministic(tokenizer, tmp_path):
    again = train_sentencepiece(CAPTIONS, 60, tmp_path)
    assert again.encode("a red dog in the city") == tokenizer.encode("a red dog in the city")


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(MissingError, match=r"sentencepiece\.model is missing"):
        Tokenizer.load(tmp_path)
    (tmp_path / "sentencepiece.model").write_bytes(b"not a model")
    with pytest.raises(MissingError, match="damaged"):
        Tokenizer.load(tmp_path)


def test_a_damaged_dictionary_names_its_line(tmp_path):
    train_sentencepiece(CAPTIONS, 60, tmp_path)
    (tmp_path / "dict.txt").write_text("cat 1\nbroken\n")
    with pytest.raises(MissingError, match="line 2"):
        Tokenizer.load(tmp_path)
