"""``tokenizer.model``: what a file of the SentencePiece library says.

A protocol buffer ``ModelProto``: pieces (1), settings of the trainer (2) and of the normalizer (3).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from slmq.checkpoint.strangers import known_stranger
from slmq.errors import TokenizerError
from slmq.tokenizer.files import read_file
from slmq.tokenizer.protobuf import fields_of, float_of, signed
from slmq.tokenizer.vocabulary import Kind

__all__ = ["SentencePieceModel", "read_sentencepiece_model"]

MAX_BYTES = 64 << 20  # Gemma 3 has the largest of those in use: 4.7 MB
UNIGRAM, BPE = 1, 2
MODEL_TYPES = {UNIGRAM: "unigram", BPE: "bpe", 3: "word", 4: "char"}

# Numbers of fields in sentencepiece_model.proto.
PIECE, TRAINER, NORMALIZER = 1, 2, 3
MODEL_TYPE, AS_SUFFIX, BYTE_FALLBACK = 3, 24, 35
SPECIAL_IDS = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}
CHARSMAP, DUMMY_PREFIX, REMOVE_SPACES, ESCAPE = 2, 3, 4, 5


@dataclass
class SentencePieceModel:
    """Contents of a model file; defaults are those of the format.

    Attributes
    ----------
    pieces, scores, kinds : list
        By id; a kind is a `Kind`.
    model_type : str
        ``"unigram"`` or ``"bpe"``.
    byte_fallback : bool
        Whether characters without a piece become bytes (else the unknown token).
    special : dict
        Ids by name: ``unk``, ``bos``, ``eos``, ``pad``; those that the model has.
    charsmap : bytes
        Compiled rules of normalization; empty for none.
    dummy_prefix : bool
        Whether a text gets a space before it.
    remove_spaces : bool
        Whether runs of spaces become one, and those at both ends vanish.
    """

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    model_type: str = "unigram"
    byte_fallback: bool = False
    special: dict[str, int] = field(default_factory=lambda: {"unk": 0, "bos": 1, "eos": 2})
    charsmap: bytes = b""
    dummy_prefix: bool = True
    remove_spaces: bool = True

    def of_kind(self, *kinds: Kind) -> list[int]:
        """Return the ids of these kinds."""
        return [i for i, kind in enumerate(self.kinds) if kind in kinds]


def read_sentencepiece_model(path: Path) -> SentencePieceModel:
    """Read and check a model file.

    Raises
    ------
    TokenizerError
        The file is unreadable, too large, corrupt, or of a kind that slmq lacks.
    """
    name = path.name
    data = read_file(path, MAX_BYTES)
    if stranger := known_stranger(data[:64]):
        raise TokenizerError(f"{name}: expected a model of SentencePiece, found {stranger}")
    model = SentencePieceModel()
    for number, value in fields_of(data, name):
        if not isinstance(value, bytes):
            continue
        if number == PIECE:
            _read_piece(model, value, name)
        elif number == TRAINER:
            _read_trainer(model, value, name)
        elif number == NORMALIZER:
            _read_normalizer(model, value, name)
    if not model.pieces:
        raise TokenizerError(
            f"{name}: expected pieces, found none; this is not a SentencePiece model"
        )
    if len(set(model.pieces)) != len(model.pieces):
        raise TokenizerError(f"{name}: expected distinct pieces")
    model.special = {key: i for key, i in model.special.items() if 0 <= i < len(model.pieces)}
    if (unknown := model.of_kind(Kind.UNKNOWN)) != [model.special.get("unk")]:
        raise TokenizerError(f"{name}: expected one unknown token, found ids {unknown[:8]}")
    return model


def _read_piece(model: SentencePieceModel, data: bytes, name: str) -> None:
    where = f"{name}: piece {len(model.pieces)}"
    piece, score, kind = b"", 0.0, int(Kind.NORMAL)
    for number, value in fields_of(data, where):
        if number == 1 and isinstance(value, bytes):
            piece = value
        elif number == 2:
            score = float_of(value, where)
        elif number == 3 and isinstance(value, int):
            kind = value
    if not Kind.NORMAL <= kind <= Kind.BYTE:
        raise TokenizerError(f"{where}: expected a kind from 1 to 6, got {kind}")
    try:
        model.pieces.append(piece.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise TokenizerError(f"{where}: expected UTF-8, got {piece[:40]!r}") from e
    model.scores.append(score)
    model.kinds.append(kind)


def _read_trainer(model: SentencePieceModel, data: bytes, name: str) -> None:
    for number, value in fields_of(data, f"{name}: trainer_spec"):
        if not isinstance(value, int):
            continue
        if number == MODEL_TYPE:
            model.model_type = MODEL_TYPES.get(value, str(value))
        elif number == BYTE_FALLBACK:
            model.byte_fallback = bool(value)
        elif number in SPECIAL_IDS:
            model.special[SPECIAL_IDS[number]] = signed(value)
        elif number == AS_SUFFIX and value:
            raise TokenizerError(f"{name}: spaces at the end of words are not supported yet")
    if model.model_type not in ("unigram", "bpe"):
        raise TokenizerError(f"{name}: a model of type {model.model_type}, expected unigram or bpe")


def _read_normalizer(model: SentencePieceModel, data: bytes, name: str) -> None:
    for number, value in fields_of(data, f"{name}: normalizer_spec"):
        if number == CHARSMAP and isinstance(value, bytes):
            model.charsmap = value
        elif number == DUMMY_PREFIX:
            model.dummy_prefix = bool(value)
        elif number == REMOVE_SPACES:
            model.remove_spaces = bool(value)
        elif number == ESCAPE and not value:
            raise TokenizerError(f"{name}: spaces that are not escaped are not supported yet")
