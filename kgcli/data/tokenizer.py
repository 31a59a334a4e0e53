"""SentencePiece text pieces and the published special symbols as one vocabulary."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import sentencepiece

from kgcli.config import SpecialIds
from kgcli.errors import MissingError

MODEL_NAMES = ("sentencepiece.model", "sentencepiece.bpe.model")  # the second is the published file's name
DICTIONARY_NAME = "dict.txt"
FIRST_PIECE_ID = 4  # after <s> <pad> </s> <unk>
SPECIAL_ORDER = ("mask", "eod", "boi", "eoi", "eoc", "eol")  # they follow the last piece
NUM_RESERVED_PIECES = 3  # SentencePiece's own <unk> <s> </s>


class Tokenizer:
    """Text to token ids and back, with the ids of the special symbols.

    Source: KOSMOS-G's fairseq dictionary; a piece's id is its line in dict.txt + 4, which without that
    file is its SentencePiece id + 1.
    """

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, dictionary: list[str] | None = None) -> None:
        self._processor = processor
        pieces = [processor.id_to_piece(index) for index in range(NUM_RESERVED_PIECES, processor.vocab_size())]
        symbols = pieces if dictionary is None else dictionary
        self._id_of = {symbol: FIRST_PIECE_ID + index for index, symbol in enumerate(symbols)}
        self._piece_of = {token: symbol for symbol, token in self._id_of.items()}
        first_special = FIRST_PIECE_ID + len(symbols)
        self.special_ids = SpecialIds(**{name: first_special + i for i, name in enumerate(SPECIAL_ORDER)})
        self.vocab_size = first_special + len(SPECIAL_ORDER)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer of a folder that holds sentencepiece.model and, optionally, dict.txt.

        Raises: MissingError where a file is missing or damaged.
        """
        folder = Path(folder)
        path = next((folder / name for name in MODEL_NAMES if (folder / name).is_file()), None)
        if path is None:
            raise MissingError(f"{folder} holds no tokenizer: {MODEL_NAMES[0]} is missing")
        dictionary = folder / DICTIONARY_NAME
        return cls.read(path, dictionary if dictionary.is_file() else None)

    @classmethod
    def read(cls, model: Path, dictionary: Path | None = None) -> Tokenizer:
        """Read a SentencePiece model and, where there is one, the dictionary that gives its pieces their ids.

        Raises: MissingError where a file is missing or damaged.
        """
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model.read_bytes())
        except (RuntimeError, OSError) as error:
            raise MissingError(f"{model} is damaged or not a SentencePiece model: fetch or copy it again") from error
        return cls(processor, None if dictionary is None else _read_dictionary(dictionary))

    @property
    def sha256(self) -> str:
        """Hash of what decides the ids of a text."""
        symbols = "\0".join(self._id_of).encode()
        return hashlib.sha256(self._processor.serialized_model_proto() + symbols).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without <s> or </s>; special symbols typed by a user are plain text."""
        unknown = self.special_ids.unk
        return [self._id_of.get(piece, unknown) for piece in self._processor.encode(text, out_type=str)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; special symbols are dropped, unknown ones become a double question mark."""
        pieces = []
        for token in ids:
            if token in self._piece_of:
                pieces.append(self._piece_of[token])
            elif token == self.special_ids.unk:
                pieces.append("\u2047")
        return str(self._processor.decode(pieces))


@lru_cache(maxsize=4)
def load_tokenizer(folder: str) -> Tokenizer:
    """`Tokenizer.load`, once per folder and process."""
    return Tokenizer.load(folder)


def train_sentencepiece(captions: Iterable[str], vocab_size: int, folder: str | Path) -> Tokenizer:
    """Train a unigram SentencePiece model with the published normalisation and save it to `folder`.

    `vocab_size` counts SentencePiece's pieces (its <unk> <s> </s> included); the tokenizer has 7 ids more.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()  # by a file's name, the model would carry the folder it was made in
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=True,
        remove_extra_whitespaces=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,  # the result must not depend on the machine
        minloglevel=2,
    )
    (folder / MODEL_NAMES[0]).write_bytes(model.getvalue())
    return Tokenizer.load(folder)


def _read_dictionary(path: Path) -> list[str]:
    """Return the symbols of a fairseq dictionary, one `symbol count` per line, in order."""
    symbols = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingError(f"{path} is missing or damaged ({error}); fetch or copy it again") from None
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        symbol, space, count = line.rpartition(" ")
        if not space or not count.isdigit():
            raise MissingError(f"{path} is damaged: line {number} is not `symbol count`")
        symbols.append(symbol)
    return symbols
