"""SentencePiece BPE the slow way: merge the best neighbours, the leftmost of equals, until none."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

from tokenizer_files import lines
from tokenizers import Tokenizer, models, normalizers, trainers

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
FIRST_PIECE = 3 + 256  # after <unk>, <s>, </s> and the bytes


@lru_cache
def spm_keys() -> dict[str, Any]:
    """The metadata of a GGUF file with a SentencePiece vocabulary of about 800 pieces.

    Pieces come from merging characters, so that every score, minus the rank, is its own. Rare
    characters have no piece and become bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    trainer = trainers.BpeTrainer(vocab_size=800, limit_alphabet=150, show_progress=False)
    words = [SPACE + word for line in lines() for word in line.split()]
    words += [SPACE * n for n in range(1, 9) for _ in range(50)]
    tokenizer.train_from_iterator(words, trainer)
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    ranks = {piece: float(i) for i, piece in enumerate(sorted(pieces, key=lambda p: len(p) == 1))}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-ranks.get(token, 0.0) for token in tokens],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces)],
    }


def spm_encode(text: str, keys: dict[str, Any], *, space_prefix: bool = True) -> list[int]:
    """Encode text that holds no control tokens."""
    tokens, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    ids = {token: i for i, token in enumerate(tokens) if i >= FIRST_PIECE}
    symbols = list((" " if space_prefix and text else "") + text)
    symbols = [SPACE if symbol == " " else symbol for symbol in symbols]
    while True:
        joined = [a + b for a, b in pairwise(symbols)]
        ranked = [(-scores[ids[pair]], i) for i, pair in enumerate(joined) if pair in ids]
        if not ranked:
            break
        _, best = min(ranked)
        symbols[best : best + 2] = [joined[best]]
    found: list[int] = []
    for symbol in symbols:
        found += [ids[symbol]] if symbol in ids else [3 + byte for byte in symbol.encode()]
    return found
