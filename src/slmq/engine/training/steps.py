"""The steps of a model with their gradients: what each computes, and what flows back through it.

A step says which values it reads, makes, and needs again on the way back. One that is `cheap` may
be computed anew there instead of keeping what it made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.engine.training.low_rank import LowRankPair, joined
from slmq.engine.training.passes import Pass
from slmq.machine.exact import exact_sincos

__all__ = [
    "ACTIVATIONS",
    "Angles",
    "AttentionStep",
    "EmbedStep",
    "GatedStep",
    "LinearPart",
    "LinearStep",
    "NormPart",
    "NormStep",
    "SelectStep",
    "Step",
    "Table",
    "TurnStep",
    "UnaryStep",
]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
ACTIVATIONS = "a16g32"  # what inputs of integer weights are rounded to: next to nothing is lost


class Step(Protocol):
    """One step of a model."""

    @property
    def reads(self) -> tuple[int, ...]:
        """Values that it takes."""

    @property
    def makes(self) -> tuple[int, ...]:
        """Values that it gives."""

    @property
    def needs(self) -> tuple[int, ...]:
        """Values, of both, that `back` reads."""

    @property
    def cheap(self) -> bool:
        """Whether its results are soon computed again."""

    @property
    def learns(self) -> bool:
        """Whether something of it is trained."""

    def run(self, p: Pass) -> None:
        """Compute the values that it makes."""

    def back(self, p: Pass) -> None:
        """End the gradients of what it makes, and add to those of what it reads."""


@dataclass
class Table:
    """A matrix of which rows are taken.

    Attributes
    ----------
    matrix : _native.Matrix
    name : str
        The tensor's.
    slope : float32, optional
        Its gradient, if it is trained: see `LinearPart`.
    """

    matrix: _native.Matrix
    name: str
    slope: F32 | None = None


@dataclass(frozen=True)
class EmbedStep:
    """Rows of the embedding (and of learned positions)."""

    out: int
    tokens: Table
    scale: float
    positions: Table | None

    cheap = False
    reads: tuple[int, ...] = ()
    needs: tuple[int, ...] = ()

    @property
    def makes(self) -> tuple[int, ...]:
        return (self.out,)

    def run(self, p: Pass) -> None:
        tokens = p.piece.tokens
        y = p.make(self.out, len(tokens))
        p.operators.embed(self.tokens.matrix, tokens, self.scale, y)
        if self.positions is None:
            return
        width = self.tokens.matrix.k
        learned, spare = p.spare(width, len(tokens))
        p.operators.embed(self.positions.matrix, _places(p), 1.0, learned)
        p.operators.add(learned, y)
        p.give(width, spare)

    def back(self, p: Pass) -> None:
        dy = p.final_slope(self.out)
        self._add(p, self.tokens, p.piece.tokens, self.scale, dy)
        if self.positions is not None:
            self._add(p, self.positions, _places(p), 1.0, dy)
        p.end_slope(self.out)

    def _add(self, p: Pass, table: Table, ids: I32, scale: float, dy: F32) -> None:
        if table.slope is not None:
            matrix = table.matrix
            p.operators.embed_back(ids, scale, dy, matrix.n, matrix.k, table.slope)

    @property
    def learns(self) -> bool:
        return self.tokens.slope is not None


def _places(p: Pass) -> I32:
    """Where every row stands in its text."""
    return np.concatenate([np.arange(n, dtype=np.int32) for n in np.diff(p.piece.starts)])


@dataclass
class NormPart:
    """Weight and bias of a norm.

    Attributes
    ----------
    norm : _native.Norm
    weight, bias : float32[width]
        As the family gave them.
    scale : float
        What the stored weight counts, in the gradient of the norm's.
    slope, bias_slope : float32[width], optional
        Gradients of what is stored, if it is trained.
    """

    norm: _native.Norm
    weight: F32
    bias: F32 | None
    scale: float = 1.0
    slope: F32 | None = None
    bias_slope: F32 | None = None


@dataclass(frozen=True)
class NormStep:
    """A norm of rows, or of every head by itself (+ add)."""

    x: int
    out: int
    part: NormPart
    add: int | None

    cheap = True

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x,) if self.add is None else (self.x, self.add)

    @property
    def makes(self) -> tuple[int, ...]:
        return (self.out,)

    @property
    def needs(self) -> tuple[int, ...]:
        return (self.x,)

    def run(self, p: Pass) -> None:
        x = p.value(self.x)
        y = p.make(self.out, len(x))
        p.operators.norm(self.part.norm, x, y)
        if self.add is not None:
            p.operators.add(p.value(self.add), y)

    def back(self, p: Pass) -> None:
        x, part = p.value(self.x), self.part
        dx, dy = p.zeroed_slope(self.x, len(x)), p.final_slope(self.out)
        if part.slope is not None:
            p.operators.norm_weight_back(part.norm, x, dy, part.scale, part.slope, part.bias_slope)
        p.operators.norm_back(part.norm, x, dy, dx)
        p.end_slope(self.out, to=self.add)

    @property
    def learns(self) -> bool:
        return self.part.slope is not None


@dataclass
class LinearPart:
    """One of the matrices that a step multiplies with.

    Attributes
    ----------
    matrix : _native.Matrix
    bias : float32[padded n], optional
    out : int
        The result.
    name : str
        The tensor's.
    own_bias : float32[n], optional
        The bias as the family gave it.
    pair : LowRankPair, optional
        What is trained beside it; set when the model is known.
    slope, bias_slope : float32, optional
        The gradients of the matrix, as the format f32 lays it out, and of its bias, if they are
        trained.
    """

    matrix: _native.Matrix
    bias: F32 | None
    out: int
    name: str
    own_bias: F32 | None = None
    pair: LowRankPair | None = None
    slope: F32 | None = None
    bias_slope: F32 | None = None

    @property
    def learns(self) -> bool:
        """Whether something of it is trained."""
        return self.pair is not None or self.slope is not None

    def add_slopes(self, operators: _native.Operators, x: F32, dy: F32) -> None:
        """Add to its own gradients, if it is trained itself."""
        if self.slope is not None:
            n, k = self.matrix.n, self.matrix.k
            operators.weight_back(x, dy, n, k, self.slope, self.bias_slope)


@dataclass(frozen=True)
class LinearStep:
    """x @ weight.T (+ bias) (+ add) (+ scale * (x @ A.T) @ B.T), of several weights at once.

    Attributes
    ----------
    x : int
    parts : list of LinearPart
    add : int, optional
    products : int
        Products with A of all pairs, scaled: made if there are pairs.
    joined : list of float32[k, ranks]
        A.T of all pairs behind each other, once they are known (`join`).
    scale : callable
    """

    x: int
    parts: list[LinearPart]
    add: int | None
    products: int
    scale: Callable[[], np.float32]
    joined: list[F32] = field(default_factory=list)

    cheap = False

    @property
    def pairs(self) -> list[LowRankPair]:
        """What adds to the parts."""
        return [part.pair for part in self.parts if part.pair is not None]

    def join(self) -> int:
        """Have all A of the pairs together; returns their ranks' sum."""
        pairs = self.pairs
        if pairs:
            self.joined.append(joined(pairs))
        return sum(pair.rank for pair in pairs)

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x,) if self.add is None else (self.x, self.add)

    @property
    def makes(self) -> tuple[int, ...]:
        outs = tuple(part.out for part in self.parts)
        return (*outs, self.products) if self.joined else outs

    @property
    def needs(self) -> tuple[int, ...]:
        if self.joined:
            return (self.x, self.products)
        return (self.x,) if self.learns else ()

    @property
    def learns(self) -> bool:
        return any(part.learns for part in self.parts)

    def run(self, p: Pass) -> None:
        x = p.value(self.x)
        added = None if self.add is None else p.value(self.add)
        outs = [p.make(part.out, len(x)) for part in self.parts]
        made = zip(self.parts, outs, strict=True)
        uses = [(part.matrix, part.bias, added, y) for part, y in made]
        pairs = None
        for a in self.joined:
            t, beside = p.make(self.products, len(x)), [part.pair for part in self.parts]
            b = [None if pair is None else pair.b_turned for pair in beside]
            pairs = (a, t, self.pairs[0].rank, float(self.scale()), b)
        p.operators.linear(x, uses, ACTIVATIONS, pairs)

    def back(self, p: Pass) -> None:
        slopes = [p.final_slope(part.out) for part in self.parts]
        dx, found = p.slope(self.x, len(slopes[0]))
        uses = [(part.matrix, None, None, dy) for part, dy in zip(self.parts, slopes, strict=True)]
        p.operators.linear_back(uses, found, dx)
        for part, dy in zip(self.parts, slopes, strict=True):
            if part.learns:
                part.add_slopes(p.operators, p.value(self.x), dy)
        if self.joined:
            self._pairs_back(p, slopes, dx)
        for part in self.parts:
            p.end_slope(part.out, to=self.add)

    def _pairs_back(self, p: Pass, slopes: list[F32], dx: F32) -> None:
        """Gradients of A and B, each a sum over rows in their order, and what A passes on."""
        uses = [
            (dy, pair.size.n, pair.a, pair.b, pair.a_slope, pair.b_slope)
            for part, dy in zip(self.parts, slopes, strict=True)
            if (pair := part.pair) is not None
        ]
        x, t, size = p.value(self.x), p.value(self.products), self.pairs[0]
        p.operators.low_rank_back(x, t, size.size.k, size.rank, float(self.scale()), uses, dx)


@dataclass(frozen=True)
class GatedStep:
    """f(gate) * up."""

    gate: int
    up: int
    out: int
    activation: str

    cheap = True
    learns = False

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.gate, self.up)

    @property
    def makes(self) -> tuple[int, ...]:
        return (self.out,)

    @property
    def needs(self) -> tuple[int, ...]:
        return self.reads

    def run(self, p: Pass) -> None:
        gate = p.value(self.gate)
        y = p.make(self.out, len(gate))
        p.operators.gated(self.activation, gate, p.value(self.up), y)

    def back(self, p: Pass) -> None:
        gate, up = p.value(self.gate), p.value(self.up)
        d_gate, _ = p.slope(self.gate, len(gate))
        d_up, _ = p.slope(self.up, len(gate))
        dy = p.final_slope(self.out)
        p.operators.gated_back(self.activation, gate, up, dy, d_gate, d_up)
        p.end_slope(self.out)


@dataclass(frozen=True)
class UnaryStep:
    """f(x)."""

    x: int
    out: int
    activation: str

    cheap = True
    learns = False

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x,)

    @property
    def makes(self) -> tuple[int, ...]:
        return (self.out,)

    @property
    def needs(self) -> tuple[int, ...]:
        return (self.x,)

    def run(self, p: Pass) -> None:
        x = p.value(self.x)
        p.operators.unary(self.activation, x, p.make(self.out, len(x)))

    def back(self, p: Pass) -> None:
        x = p.value(self.x)
        dx, _ = p.slope(self.x, len(x))
        p.operators.unary_back(self.activation, x, p.final_slope(self.out), dx)
        p.end_slope(self.out)


@dataclass
class Angles:
    """Cosines and sines of every position, as a plan has them.

    Attributes
    ----------
    frequencies : float32[rotary / 2]
    factor : float
    """

    frequencies: F32
    factor: float
    _tables: list[F32] = field(default_factory=list)

    def upto(self, n: int) -> tuple[F32, F32]:
        """Cosines and sines, float32[at least n, rotary / 2] each."""
        if not self._tables or len(self._tables[0]) < n:
            turns = np.arange(n, dtype=np.float32)[:, None] * self.frequencies[None, :]
            both = np.array([exact_sincos(float(x)) for x in turns.reshape(-1)], np.float32)
            both = both * np.float32(self.factor)
            shape = (n, len(self.frequencies))
            columns = (both[:, 1], both[:, 0])
            self._tables = [np.ascontiguousarray(c.reshape(shape)) for c in columns]
        return self._tables[0], self._tables[1]


@dataclass(frozen=True)
class TurnStep:
    """Heads turned by rope."""

    x: int
    out: int
    angles: Angles
    heads: int
    head_dim: int

    cheap = False
    learns = False
    needs: tuple[int, ...] = ()

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x,)

    @property
    def makes(self) -> tuple[int, ...]:
        return (self.out,)

    def run(self, p: Pass) -> None:
        x = p.value(self.x)
        self._turn(p, x, p.make(self.out, len(x)), back=False)

    def back(self, p: Pass) -> None:
        dy = p.final_slope(self.out)
        self._turn(p, dy, dy, back=True)
        p.end_slope(self.out, to=self.x)

    def _turn(self, p: Pass, x: F32, y: F32, *, back: bool) -> None:
        angles = self.angles.upto(p.piece.longest)
        p.operators.turn(x, y, p.piece.starts, angles, self.heads, self.head_dim, back)


@dataclass(frozen=True)
class AttentionStep:
    """Causal attention within every text."""

    q: int
    k: int
    v: int
    out: int
    attention: _native.Attention

    cheap = False
    learns = False

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.q, self.k, self.v)

    @property
    def makes(self) -> tuple[int, ...]:
        return (self.out,)

    @property
    def needs(self) -> tuple[int, ...]:
        return self.reads

    def run(self, p: Pass) -> None:
        q, k, v = (p.value(number) for number in self.reads)
        p.operators.attend(self.attention, p.piece.starts, q, k, v, p.make(self.out, len(q)))

    def back(self, p: Pass) -> None:
        qkv = [p.value(number) for number in self.reads]
        slopes = [p.slope(number, len(qkv[0]))[0] for number in self.reads]
        d_out = p.final_slope(self.out)
        p.operators.attend_back(self.attention, p.piece.starts, qkv, d_out, slopes)
        p.end_slope(self.out)


@dataclass(frozen=True)
class SelectStep:
    """The rows whose next token counts."""

    x: int
    out: int

    cheap = False
    learns = False
    needs: tuple[int, ...] = ()

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x,)

    @property
    def makes(self) -> tuple[int, ...]:
        return (self.out,)

    def run(self, p: Pass) -> None:
        rows = p.piece.rows
        p.operators.select(p.value(self.x), rows, p.make(self.out, len(rows)))

    def back(self, p: Pass) -> None:
        dx = p.zeroed_slope(self.x, len(p.piece.tokens))
        p.operators.select_back(p.final_slope(self.out), p.piece.rows, dx)
        p.end_slope(self.out)
