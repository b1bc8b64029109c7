"""What an index is asked: its database and its vectors, as they are at one time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slmq.search.ranking import fused, share_of
from slmq.search.store import Store
from slmq.search.vectors import MappedVectors

__all__ = ["Found", "View", "best_rows"]

F32 = npt.NDArray[np.float32]
CANDIDATES = 60  # of each search
WORDED = 200  # passages whose shares are known, if there are so many


@dataclass(frozen=True)
class Found:
    """A passage.

    Attributes
    ----------
    number : int
    score : float
        What it is ranked by.
    cosine : float or None
        None if only words were looked for.
    share : float
        Of the query's words, weighed by how rare they are.
    """

    number: int
    score: float
    cosine: float | None
    share: float


class View:
    """What can be asked.

    Parameters
    ----------
    store : Store
    vectors : MappedVectors
    numbers : int64[rows]
        The passage of each row, -1 for none.
    threads : int
    """

    def __init__(
        self, store: Store, vectors: MappedVectors, numbers: npt.NDArray[np.int64], threads: int
    ) -> None:
        self._store = store
        self.vectors = vectors
        self._numbers = numbers
        self._threads = threads
        self._rows = np.flatnonzero(numbers >= 0)  # those that count
        self._order = np.argsort(numbers[self._rows])

    def cosines(self, vector: F32) -> F32:
        """Of all passages, for one query or several: float32[queries, passages]."""
        found: F32 = self.vectors.scores(vector, self._threads)[:, self._rows]
        return found

    def ranked(self, query: str, vector: F32 | None, *, words: bool, most: int) -> list[Found]:
        """Passages that fit a query, the best first.

        By the vector, if there is one, and by words if `words`; at least one of them.
        """
        count = max(CANDIDATES, most)
        shares = self.shares(query, max(WORDED, most)) if words else {}
        if vector is None:
            order = sorted(shares.items(), key=lambda item: (-item[1][0], item[0]))
            return [Found(n, score, None, share) for n, (score, share) in order[:most]]
        cosines = self.cosines(vector)[0]
        near = best_rows(cosines, count)
        numbers = self._numbers[self._rows]
        if not words:
            return [Found(int(numbers[i]), float(cosines[i]), float(cosines[i]), 0.0) for i in near]
        at = np.union1d(near, self._at(list(shares)))
        if not len(at):
            return []
        listed = numbers[at].tolist()
        has = [shares.get(number, (0.0, 0.0))[1] for number in listed]
        scores = fused(cosines, at, listed, has).tolist()
        made = map(Found, listed, scores, cosines[at].tolist(), has)
        return sorted(made, key=rank_of)[:most]

    def shares(self, query: str, most: int) -> dict[int, tuple[float, float]]:
        """BM25 and share of the passages that have any of a query's words, of the best `most`."""
        both = (self._store.by_words(query, most), self._store.by_grams(query, most))
        worth = sum(matched.worth for matched in both)
        scores: dict[int, float] = {}
        for matched in both:
            for number, score in matched.found:
                scores[number] = scores.get(number, 0.0) + score
        return {number: (score, share_of(score, worth)) for number, score in scores.items()}

    def grounds(self, query: str, vector: F32, top_k: int) -> list[Found]:
        """As `ranked`, and half of the passages have those words of the query that few have."""
        ranked = self.ranked(query, vector, words=True, most=max(CANDIDATES, top_k))
        open_terms = self._store.rare_terms(query)
        kept: list[Found] = []
        while open_terms and len(kept) < -(-top_k // 2):
            worths = [sum(w for w, having in open_terms if one.number in having) for one in ranked]
            most = max(worths, default=0.0)
            if most <= 0:
                break
            kept.append(ranked[worths.index(most)])
            open_terms = [term for term in open_terms if kept[-1].number not in term[1]]
        others = [one for one in ranked if one not in kept][: top_k - len(kept)]
        return sorted([*kept, *others], key=rank_of)

    def _at(self, numbers: Sequence[int]) -> npt.NDArray[np.int64]:
        """Where passages stand among those that count."""
        known = self._numbers[self._rows]
        places = np.searchsorted(known, np.array(numbers, np.int64), sorter=self._order)
        return np.asarray(self._order[places], np.int64)


def rank_of(one: Found) -> tuple[float, float, float, int]:
    """What a hybrid search sorts by; where neither search is sure of itself, words come first."""
    return -one.score, -one.share, -(one.cosine or 0.0), one.number


def best_rows(scores: F32, most: int) -> npt.NDArray[np.int64]:
    """The places of the largest scores, the largest first; equal ones in their order."""
    if len(scores) > most:
        # All that reach the last place, so that equal scores do not depend on how they are parted.
        edge = -np.partition(-scores, most - 1)[most - 1]
        rows = np.flatnonzero(scores >= edge)
    else:
        rows = np.arange(len(scores))
    return rows[np.lexsort((rows, -scores[rows]))][:most]
