"""What can be told of a prompt without a model: its length, signs, lines and words."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from slmq.machine.exact import exact_log

__all__ = ["LOOKED_AT", "NAMES", "plain_features"]

F64 = npt.NDArray[np.float64]
LOOKED_AT = 4000  # characters
LARGEST = 4.0
CODE = re.compile(r"```|\bdef |\bclass |\breturn\b|#include|;\s*$|\{\s*$|=>|\bSELECT\b", re.M)
CHOICES = re.compile(r"^\s*[A-E][.)] ", re.M)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
MATH = re.compile(r"[=+*/^<>≤≥∑∫√π%]|\\\w+")
ASKING = re.compile(
    r"\b(?:why|how|prove|derive|explain|calculate|compute|compare|analy[sz]e)\b", re.I
)
NOT = re.compile(r"\b(?:not|except|never|least|incorrect|false)\b", re.I)
STATEMENTS = re.compile(r"\b(?:statement|scenario|i+\b|true|both|neither|respectively)", re.I)
NAMES = (
    "length", "words", "long_words", "lines", "numbers", "mathematics", "code", "questions",
    "choices", "choice_length", "asking", "negation", "statements", "upper", "foreign", "quotes",
)  # fmt: skip


def plain_features(text: str) -> F64:
    """Numbers by the names in `NAMES`, of the size of 1: float64[16]."""
    text = text[:LOOKED_AT]
    words = re.findall(r"[^\W\d_]+", text)
    size = max(len(text), 1)
    first = CHOICES.search(text)
    choices = text[first.start() :] if first else ""
    letters = max(sum(map(len, words)), 1)
    found = (
        _log1p(len(text)) / 5,
        _log1p(len(words)) / 4,
        letters / max(len(words), 1) / 5,
        _log1p(text.count("\n")) / 2,
        _many(NUMBER, text),
        _many(MATH, text),
        _many(CODE, text),
        _log1p(text.count("?") + text.count("？")),
        _log1p(len(CHOICES.findall(text))),
        _log1p(len(choices)) / 5,
        _many(ASKING, text),
        _many(NOT, text),
        _many(STATEMENTS, text),
        sum(sign.isupper() for sign in text) / letters * 5,
        sum(ord(sign) > 0x17F for sign in text) / size,
        _log1p(text.count('"') + text.count("“")) / 2,
    )
    return np.clip(np.array(found, np.float64), 0, LARGEST)


def _log1p(count: int) -> float:
    """The same bits everywhere; a C library's own follows the CPU."""
    return exact_log(1.0 + count)


def _many(pattern: re.Pattern[str], text: str) -> float:
    return _log1p(len(pattern.findall(text))) / 2
