"""Steps of SentencePiece that the `tokenizers` library lacks, as pre-tokenizers in Python.

The library merges by a list of pairs, so that two pieces of one score come in a fixed order, where
SentencePiece takes the leftmost. Vocabularies that were extended by pieces of another model have
such ties. For them text is merged here, and the library only looks up ids.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping

from tokenizers import NormalizedString, PreTokenizedString, pre_tokenizers

__all__ = ["PrefixOnce", "piece_splitter", "split_pieces"]


class PrefixOnce:
    """Puts a mark before a text, unless it begins with a special token; not behind those.

    The library's own Metaspace leaves it out where the text begins with a space.

    Parameters
    ----------
    mark : str
        What is put there.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark

    def pre_tokenize(self, pretok: PreTokenizedString) -> None:
        """Change a text; called by the library."""
        pretok.split(self._prepend)

    def _prepend(self, index: int, text: NormalizedString) -> list[NormalizedString]:
        if index == 0:
            text.prepend(self._mark)
        return [text]


def piece_splitter(
    scores: Mapping[str, float], known: Collection[str]
) -> pre_tokenizers.PreTokenizer:
    """A pre-tokenizer for the `tokenizers` library whose parts are SentencePiece's pieces.

    Parameters
    ----------
    scores : Mapping
        Score of every piece that merging can make.
    known : Collection
        Every token of the vocabulary.
    """
    return pre_tokenizers.PreTokenizer.custom(_PieceSplitter(scores, known))


class _PieceSplitter:
    def __init__(self, scores: Mapping[str, float], known: Collection[str]) -> None:
        self._scores = scores
        self._known = known

    def pre_tokenize(self, pretok: PreTokenizedString) -> None:
        """Cut a text; called by the library."""
        pretok.split(self._split)

    def _split(self, _index: int, text: NormalizedString) -> list[NormalizedString]:
        whole = str(text)
        spans: list[tuple[int, int]] = []
        begin, unknown = 0, False
        for end in split_pieces(whole, self._scores):
            # Neighbours without a token stay together: they are one unknown token.
            before, unknown = unknown, whole[begin:end] not in self._known
            spans.append((spans.pop()[0] if unknown and before else begin, end))
            begin = end
        parts = [text[begin:end] for begin, end in spans]
        return [part for part in parts if part is not None]


def split_pieces(text: str, scores: Mapping[str, float]) -> list[int]:
    """Merge the neighbours of the best score, the leftmost of equals, until none are left.

    Returns
    -------
    list of int
        Where each piece ends.
    """
    n = len(text)
    ends = list(range(1, n + 1))  # of the symbol that begins here; 0 where none does
    befores = list(range(-1, n))  # one more than there are: where the symbol before begins
    waiting: list[tuple[float, int, int]] = []

    def consider(left: int) -> None:
        right = ends[left]
        if right < n:
            score = scores.get(text[left : ends[right]])
            if score is not None:
                heapq.heappush(waiting, (-score, left, ends[right]))

    for left in range(n - 1):
        consider(left)
    while waiting:
        _, left, end = heapq.heappop(waiting)
        right = ends[left]
        if right == 0 or right >= n or ends[right] != end:
            continue  # one of the two was merged with another meanwhile
        ends[left], ends[right] = end, 0
        befores[end] = left
        consider(left)
        if befores[left] >= 0:
            consider(befores[left])
    return [end for end in ends if end]
