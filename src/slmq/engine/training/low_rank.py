"""The matrices that are trained: pairs of low rank, which add ``scale * B @ A`` to a weight.

All pairs lie behind each other in one vector, so that an optimizer and a checkpoint need not know
of them: A as rows of the weight's inputs, B transposed, as rows of its outputs, padded with zeros
to multiples of 32 columns, which stay zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.formats import padded

if TYPE_CHECKING:
    from slmq.engine.training.tape import Tape

__all__ = ["LowRankPair", "LowRankSize", "LowRanks", "joined"]

F32 = npt.NDArray[np.float32]


class LowRankSize(NamedTuple):
    """The weight that a pair adds to.

    Attributes
    ----------
    module : str
    n, k : int
        Its outputs and inputs.
    order : int32[n], optional
        Which row of the model's own files each of its rows is, where they lie in another order.
    """

    module: str
    n: int
    k: int
    order: npt.NDArray[np.int32] | None = None


@dataclass
class LowRankPair:
    """One pair.

    Attributes
    ----------
    size : LowRankSize
    rank : int
    a, b_turned : float32[rank, padded columns]
        A, and B transposed: views of the vector of all parameters.
    a_slope, b_slope : like them
        Their gradients.
    a_turned : list of float32[k, rank]
        Copies of A, transposed, within what steps multiply with; see `joined` and `turn`.
    b : float32[n, padded rank]
        A copy of B; see `turn`.
    """

    size: LowRankSize
    rank: int
    a: F32
    b_turned: F32
    a_slope: F32
    b_slope: F32
    a_turned: list[F32] = field(default_factory=list)
    b: F32 = field(init=False)

    def __post_init__(self) -> None:
        self.b = _native.zero_rows(self.size.n, self.rank)

    def turn(self) -> None:
        """Bring the copies up to date."""
        for copy in self.a_turned:
            copy[:] = self.a[:, : self.size.k].T
        self.b[:, : self.rank] = self.b_turned[:, : self.size.n].T


class LowRanks:
    """All pairs of a model.

    Attributes
    ----------
    scale : float
    values, slopes : float32[parameters]
        All parameters and their gradients.
    pairs : dict of str to LowRankPair
        By module.
    """

    def __init__(self, sizes: Iterable[LowRankSize], rank: int, alpha: float, seed: int) -> None:
        sizes = list(sizes)
        self.rank = rank
        self.alpha = alpha
        self.scale = np.float32(alpha / rank)
        total = sum(rank * (padded(s.k, 32) + padded(s.n, 32)) for s in sizes)
        self.values: F32 = _native.zero_rows(1, max(1, total))[0][:total]
        self.slopes: F32 = _native.zero_rows(1, max(1, total))[0][:total]
        self.pairs: dict[str, LowRankPair] = {}
        at = 0
        for number, size in enumerate(sizes):
            views = []
            for width in (padded(size.k, 32), padded(size.n, 32)):
                end = at + rank * width
                views += [
                    self.values[at:end].reshape(rank, width),
                    self.slopes[at:end].reshape(rank, width),
                ]
                at = end
            a, a_slope, b_turned, b_slope = views
            pair = LowRankPair(size, rank, a, b_turned, a_slope, b_slope)
            pair.a[:, : size.k] = uniform(seed, number, (rank, size.k), 1.0 / math.sqrt(size.k))
            self.pairs[size.module] = pair
        self.turn()

    @property
    def count(self) -> int:
        """Trained parameters."""
        found: int = sum(p.rank * (p.size.k + p.size.n) for p in self.pairs.values())
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of parameters, gradients and copies."""
        copies = sum(copy.nbytes for p in self.pairs.values() for copy in (p.b, *p.a_turned))
        return self.values.nbytes + self.slopes.nbytes + copies

    @property
    def modules(self) -> list[str]:
        """What is trained, in order."""
        return list(self.pairs)

    def attach(self, tape: Tape) -> None:
        """Give the steps of a model their pairs."""
        tape.scale = self.scale
        for part in tape.linears:
            part.pair = self.pairs.get(part.name.removesuffix(".weight"))

    def turn(self) -> None:
        """Bring the copies up to date, after the parameters were changed."""
        for pair in self.pairs.values():
            pair.turn()


def joined(pairs: Sequence[LowRankPair]) -> F32:
    """A.T of pairs of one input, behind each other: float32[k, padded ranks], kept up to date."""
    together = _native.zero_rows(pairs[0].size.k, sum(pair.rank for pair in pairs))
    begin = 0
    for pair in pairs:
        pair.a_turned.append(together[:, begin : begin + pair.rank])
        pair.turn()
        begin += pair.rank
    return together


def uniform(seed: int, stream: int, shape: tuple[int, int], bound: float) -> F32:
    """Numbers within -bound..bound, the same everywhere: PEFT's and mlx-lm's start of A.

    Made from the raw integers of Philox, which no version of NumPy changes.
    """
    key = np.array([seed, stream], np.uint64)
    raw = np.random.Philox(key=key).random_raw(shape[0] * shape[1])
    unit = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    values: F32 = (unit * np.float32(2.0) - np.float32(1.0)) * np.float32(bound)
    return values.reshape(shape)
