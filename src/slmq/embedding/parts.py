"""Texts that are too long: the mean of the vectors of their parts, weighted by tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee

import numpy as np
import numpy.typing as npt

from slmq.embedding import scores
from slmq.embedding.runner import EncodedText, Runner

__all__ = ["means_of_parts"]

F32 = npt.NDArray[np.float32]
Part = tuple[int, EncodedText, int]  # of which text, what runs, tokens of the text


def means_of_parts(runner: Runner, parts: Iterable[Part], *, unit: bool) -> Iterator[F32]:
    """The vectors of texts, in order, of parts that follow each other.

    With `unit` the vector of a part has length 1 before it counts.
    """
    one, other = tee(parts)
    dimensions = runner.body.dimensions
    at: int | None = None
    total, weight = np.zeros(dimensions), 0
    vectors = runner.pooled(encoded for _, encoded, _ in other)
    for (number, _, tokens), vector in zip(one, vectors, strict=True):
        if at is None:
            at = number
        if number != at:
            yield (total / weight).astype(np.float32)
            at, total, weight = number, np.zeros(dimensions), 0
        whole = scores.unit_rows(vector[None])[0] if unit else vector
        total = total + whole.astype(np.float64) * max(tokens, 1)
        weight += max(tokens, 1)
    if weight:
        yield (total / weight).astype(np.float32)
