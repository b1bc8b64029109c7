"""From the labels of tokens to labelled parts of a text, as the pipelines of transformers do it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slmq.embedding.results import Tagged
from slmq.tokenizer.encoding import Encoding

__all__ = ["AGGREGATIONS", "tagged"]

F32 = npt.NDArray[np.float32]
AGGREGATIONS = ("none", "simple", "first", "average", "max")
OUTSIDE = "O"


@dataclass(frozen=True)
class _Part:
    """Some characters of a text, with the probabilities of every label.

    `goes_on`: whether it belongs to the word of the part before it.
    """

    start: int
    end: int
    likely: F32
    goes_on: bool = False

    @property
    def best(self) -> int:
        return int(np.argmax(self.likely))


def tagged(
    text: str,
    encoding: Encoding,
    continues: list[bool],
    likely: F32,
    labels: list[str],
    aggregation: str,
) -> list[Tagged]:
    """The parts of a text that have a label other than O.

    `continues` says of each token whether it goes on with a word; `likely` is float32[tokens,
    labels].
    """
    single = [
        _Part(start, end, likely[i], continues[i])
        for i, (start, end) in enumerate(encoding.offsets)
        if encoding.sources[i] is not None
    ]
    if aggregation in ("first", "average", "max"):
        words: list[list[_Part]] = []
        for part in single:
            if words and part.goes_on:
                words[-1].append(part)
            else:
                words.append([part])
        single = [_word(group, aggregation) for group in words]
    if aggregation == "none":
        found = [(labels[p.best], [p]) for p in single]
    else:
        found = _grouped(single, labels)
    return [
        Tagged(
            label=label,
            score=float(np.mean([p.likely[p.best] for p in group], dtype=np.float64)),
            text=text[group[0].start : group[-1].end],
            start=group[0].start,
            end=group[-1].end,
        )
        for label, group in found
        # A piece that stands for no character counts in its word, and is nothing to show.
        if label != OUTSIDE and group[-1].end > group[0].start
    ]


def _word(tokens: list[_Part], aggregation: str) -> _Part:
    """The tokens of a word as one."""
    if aggregation == "first":
        likely = tokens[0].likely
    elif aggregation == "max":
        likely = max(tokens, key=lambda token: float(token.likely.max())).likely
    else:
        total = np.zeros(len(tokens[0].likely))
        for token in tokens:
            total = total + token.likely
        likely = (total / len(tokens)).astype(np.float32)
    return _Part(tokens[0].start, tokens[-1].end, likely)


def _grouped(parts: list[_Part], labels: list[str]) -> list[tuple[str, list[_Part]]]:
    """Neighbours of one label together; B- begins a new part. What is shown has no prefix."""
    found: list[tuple[str, list[_Part]]] = []
    for part in parts:
        label = labels[part.best]
        begins, name = label.startswith("B-"), label[2:] if label[:2] in ("B-", "I-") else label
        if found and found[-1][0] == name and not begins:
            found[-1][1].append(part)
        else:
            found.append((name, [part]))
    return [(labels[group[0].best].partition("-")[2] or name, group) for name, group in found]
