"""Which samples a batch has, in an order that the seed alone decides, and the pieces it runs in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from slmq.engine.training.data import Sample
from slmq.engine.training.passes import Piece

__all__ = ["PIECE_ROWS", "Order", "batches_in_turn", "largest_rows", "pieces_of"]

# Rows of a piece, if its samples are shorter: enough that weights are widened for many rows, few
# enough that what is kept for the way back stays small. A part of the order of sums.
PIECE_ROWS = 256
FIRST_EPOCH = 1 << 63  # streams of random numbers before it are those of the first values


class Order:
    """The samples of every batch: each epoch all of them, shuffled anew.

    Parameters
    ----------
    samples : sequence of Sample
    batch_size : int
    seed : int
    """

    def __init__(self, samples: Sequence[Sample], batch_size: int, seed: int) -> None:
        self._samples = samples
        self._size = batch_size
        self._seed = seed
        self._epoch = -1
        self._order: npt.NDArray[np.intp] = np.arange(0)

    def batch(self, number: int) -> list[Sample]:
        """Batch `number` = 0, 1, ..."""
        first = number * self._size
        return [self._sample(i) for i in range(first, first + self._size)]

    def _sample(self, number: int) -> Sample:
        epoch, place = divmod(number, len(self._samples))
        if epoch != self._epoch:
            # Raw integers, sorted: no version of NumPy gives another order.
            key = np.array([self._seed, FIRST_EPOCH + epoch], np.uint64)
            keys = np.random.Philox(key=key).random_raw(len(self._samples))
            self._order = np.argsort(keys, kind="stable")
            self._epoch = epoch
        return self._samples[int(self._order[place])]


def batches_in_turn(samples: Sequence[Sample], size: int, most: int) -> Iterator[list[Sample]]:
    """Batches of the first samples, as they come: what an evaluation looks at (-1: all)."""
    end = len(samples) if most < 0 else min(len(samples), most * size)
    for begin in range(0, end, size):
        yield list(samples[begin : min(begin + size, end)])


def pieces_of(batch: Sequence[Sample]) -> Iterator[Piece]:
    """Runs of samples that fit together into `PIECE_ROWS`; a longer one is a piece of its own."""
    run: list[Sample] = []
    for sample in batch:
        if run and sum(s.rows for s in run) + sample.rows > PIECE_ROWS:
            yield _piece(run)
            run = []
        run.append(sample)
    if run:
        yield _piece(run)


def largest_rows(samples: Sequence[Sample]) -> int:
    """Most rows of any piece of these samples."""
    return max(PIECE_ROWS, *(sample.rows for sample in samples))


def _piece(samples: Sequence[Sample]) -> Piece:
    tokens, starts, rows, targets = [], [0], [], []
    for sample in samples:
        tokens.append(sample.tokens[:-1])
        first = sample.first - 1
        rows.append(np.arange(starts[-1] + first, starts[-1] + sample.rows, dtype=np.int32))
        targets.append(sample.tokens[sample.first :])
        starts.append(starts[-1] + sample.rows)
    return Piece(
        np.concatenate(tokens),
        np.array(starts, np.int32),
        np.concatenate(rows),
        np.concatenate(targets),
    )
