"""WordPiece, BERT's tokenizer, from a vocabulary alone: the longest pieces of every word.

Words are cut at white space and punctuation, and around Chinese characters. A model says by its
vocabulary whether it knows capital letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from slmq.errors import TokenizerError

__all__ = ["PREFIX", "SPECIAL", "add_frame", "build_wordpiece", "knows_capitals"]

PREFIX = "##"  # of pieces that continue a word
LONGEST_WORD = 100  # characters; a longer word is unknown, as in BERT's own code
# BERT's names of tokens that are no text, where a folder names none.
SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def build_wordpiece(
    ids: Mapping[str, int],
    *,
    unknown: str,
    lower: bool,
    strip_accents: bool | None = None,
    split_chinese: bool = True,
) -> tokenizers.Tokenizer:
    """A tokenizer of words and pieces without special tokens.

    `strip_accents` None: where letters become small ones, as BERT does.

    Raises
    ------
    TokenizerError
        If the unknown token is missing.
    """
    if unknown not in ids:
        raise TokenizerError(f"expected the unknown token {unknown!r:.80} in the vocabulary")
    model = models.WordPiece(dict(ids), unk_token=unknown, max_input_chars_per_word=LONGEST_WORD)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=split_chinese,
        strip_accents=strip_accents,
        lowercase=lower,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=PREFIX)
    return backend


def add_frame(backend: tokenizers.Tokenizer, first: tuple[str, int], end: tuple[str, int]) -> None:
    """Let texts stand between two tokens, and pairs have another one between them."""
    (cls, cls_id), (sep, sep_id) = first, end
    backend.post_processor = processors.TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", sep, "$B:1", f"{sep}:1"],
        special_tokens=[(cls, cls_id), (sep, sep_id)],
    )


def knows_capitals(tokens: Iterable[str]) -> bool:
    """Whether any token has a letter that would be another one if it were small."""
    return any(token != token.lower() for token in tokens)
