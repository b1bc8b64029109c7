"""The language of a text, by the letters that follow each other: hashed counts, integer weights."""

from __future__ import annotations

import re
import zlib

import numpy as np
import numpy.typing as npt

__all__ = ["BUCKETS", "LanguageHead", "ngram_counts"]

BUCKETS = 4096
LOOKED_AT = 400  # characters
GRAMS = (1, 2, 3)
LETTERS = re.compile(r"[^\W\d_]+")
I64 = npt.NDArray[np.int64]


def ngram_counts(text: str) -> npt.NDArray[np.int32]:
    """How often each bucket of n-grams comes in the beginning of a text: int32[4096]."""
    words = LETTERS.findall(text[:LOOKED_AT].lower())
    marked = " ".join(["", *words, ""])
    found = np.zeros(BUCKETS, np.int32)
    for size in GRAMS:
        for i in range(len(marked) - size + 1):
            gram = marked[i : i + size]
            if gram != " ":
                found[zlib.crc32(gram.encode("utf-8", "replace")) % BUCKETS] += 1
    return found


class LanguageHead:
    """A linear model over those counts.

    Parameters
    ----------
    labels : list of str
        ISO 639-1.
    weights : int8[BUCKETS, labels]
        In units of 1 / 16 of a natural logarithm.
    """

    UNIT = 16.0

    def __init__(self, labels: list[str], weights: npt.NDArray[np.int8]) -> None:
        self.labels = labels
        self._weights = weights

    def language_of(self, text: str) -> tuple[str, float]:
        """The likeliest language and by how much it leads: 0 for none, up to 1."""
        counts = ngram_counts(text)
        used = np.flatnonzero(counts)
        if not len(used):
            return "", 0.0
        sums: I64 = counts[used].astype(np.int64) @ self._weights[used].astype(np.int64)
        order = np.argsort(-sums, kind="stable")
        gap = float(sums[order[0]] - sums[order[1]]) / self.UNIT
        return self.labels[int(order[0])], 1 - 0.5 ** min(gap, 60.0)
