"""Several rankings made into one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["fused"]

CALM = 60  # by how much the first ranks differ little (Cormack, Clarke and Buettcher, 2009)


def fused(rankings: Iterable[Sequence[int]]) -> list[tuple[int, float]]:
    """Reciprocal rank fusion: items with the sum of 1 / (60 + rank), the largest first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + 1 / (CALM + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
