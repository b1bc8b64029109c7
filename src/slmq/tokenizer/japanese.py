"""Words of Japanese texts, cut by MeCab, for models whose pieces are those of words.

The models of Tohoku University and Ruri v1 and v2 are of this kind. MeCab and its dictionary are
the extra `slmq[ja]`; they are loaded when such a model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

import tokenizers
from tokenizers import NormalizedString, PreTokenizedString, normalizers, pre_tokenizers

from slmq.errors import TokenizerError

__all__ = ["JAPANESE_CLASS", "Words", "cut_japanese"]

JAPANESE_CLASS = "BertJapaneseTokenizer"
DICTIONARIES = ("unidic_lite", "unidic", "ipadic")  # packages of these names hold them
USUAL = "unidic_lite"


def cut_japanese(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Let MeCab cut texts into words, and WordPiece or single characters be their pieces.

    Raises
    ------
    TokenizerError
        For another way to cut texts or words, or a dictionary that is not known; if MeCab or the
        dictionary is not installed.
    """
    cutter = config.get("word_tokenizer_type", "basic")
    pieces = config.get("subword_tokenizer_type", "wordpiece")
    if cutter not in ("basic", "mecab") or pieces not in ("wordpiece", "character"):
        raise TokenizerError(
            f"{JAPANESE_CLASS}: expected words by basic or mecab and pieces by wordpiece or "
            f"character, found {cutter!r:.40} and {pieces!r:.40}"
        )
    given = config.get("mecab_kwargs") or {}
    dictionary = given.get("mecab_dic") or USUAL if isinstance(given, Mapping) else None
    if dictionary not in DICTIONARIES:
        raise TokenizerError(
            f"mecab_dic: expected one of {', '.join(DICTIONARIES)}, found {dictionary!r:.80}"
        )
    if cutter == "mecab":
        steps: list[Any] = [normalizers.NFKC()] if given.get("normalize_text", True) else []
        if config.get("do_lower_case"):
            steps.append(normalizers.Lowercase())
        backend.normalizer = normalizers.Sequence(steps)
        backend.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Words(str(dictionary)))
    if pieces == "character":  # each is a word
        one = pre_tokenizers.Split(tokenizers.Regex("(?m:.)"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, one])


class Words:
    """Cuts texts into the words that MeCab finds; white space between them is left out."""

    def __init__(self, dictionary: str) -> None:
        self._dictionary = dictionary
        _tagger(dictionary)  # so that a missing package is an error of the loading

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        """Cut a text."""
        text.split(self._words)

    def _words(self, _number: int, text: NormalizedString) -> list[NormalizedString]:
        whole = str(text)
        found: list[NormalizedString] = []
        at = 0
        for word in _tagger(self._dictionary)(whole):
            start = whole.index(word.surface, at)
            at = start + len(word.surface)
            part = text[start:at]
            assert part is not None  # it is within the text
            found.append(part)
        return found


@lru_cache
def _tagger(dictionary: str) -> Any:
    try:
        fugashi, package = (import_module(name) for name in ("fugashi", dictionary))
    except ImportError as error:
        raise TokenizerError(
            f"this model's texts are cut by MeCab ({error.name} is missing): pip install 'slmq[ja]'"
        ) from None
    folder = package.DICDIR
    return fugashi.GenericTagger(f'-d "{folder}" -r "{folder}/mecabrc"')
