"""A recording that can be run backwards: what a family's `forward` is given when it is trained.

The family files know nothing of training. Each call notes a step of `steps.py`; steps of a layer
stay together, so that a layer can be computed anew on the way back. What has no gradient here is
refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.engine.training.steps import (
    ACTIVATIONS,
    Angles,
    AttentionStep,
    EmbedStep,
    GatedStep,
    LinearPart,
    LinearStep,
    NormPart,
    NormStep,
    SelectStep,
    Step,
    Table,
    TurnStep,
    UnaryStep,
)
from slmq.errors import UnsupportedModelError
from slmq.formats import padded
from slmq.plan.experts import Experts, Routing
from slmq.plan.handle import Handle, Rope
from slmq.plan.linear import Linear

__all__ = ["Segment", "Tape", "Value"]

F32 = npt.NDArray[np.float32]
# Steps that write the gradients of what they read, instead of adding to them.
SOLE_READERS = (AttentionStep, GatedStep, UnaryStep)


class Value(Handle):
    """What a step makes: a number and a width; or, of several weights, a value for each."""

    def __init__(self, number: int, width: int, parts: tuple[Value, ...] = ()) -> None:
        self.number = number
        self.width = width
        self.parts = parts

    def split(self) -> tuple[Handle, ...]:
        """The values of a step over several weights."""
        return self.parts

    def columns(self, first: int, width: int) -> Handle:
        """Refused: what reads a part of a value has no gradient here."""
        raise _missing("columns of a value by themselves")

    def __repr__(self) -> str:
        return f"Value({self.number}, float32[rows, {self.width}])"


class _Turns(Value):
    """The angles of a rope."""

    def __init__(self, angles: Angles) -> None:
        super().__init__(-1, 2 * len(angles.frequencies))
        self.angles = angles


@dataclass
class Segment:
    """Steps that belong together: those of a layer, or what is before, between or behind layers."""

    name: str
    steps: list[Step] = field(default_factory=list)


class Tape:
    """Notes a model's forward pass as steps with gradients: a `Recording`.

    Parameters
    ----------
    n_ctx : int
        Most positions of a text, as the model is loaded to answer: some ropes depend on it.

    Attributes
    ----------
    segments : list of Segment
    widths : list of int
        Of every value, by number.
    linears : list of LinearPart
        Every multiplication with a weight, in order, but for the head's.
    head : _native.Head
        What makes losses of the last value; set by `finish`.
    head_part : LinearPart
    head_softcap : float
        Its matrix, and the soft cap of logits; 0: none.
    hidden : int
        That value.
    scale : float32
        What the products of trained pairs are multiplied with.
    """

    head: _native.Head
    head_part: LinearPart
    head_softcap: float
    hidden: int

    def __init__(self, n_ctx: int) -> None:
        self._n_ctx = n_ctx
        self.segments = [Segment("")]
        self.widths: list[int] = []
        self.scale = np.float32(1.0)
        self._selected = False
        self._capped: dict[int, float] = {}

    @property
    def n_ctx(self) -> int:
        return self._n_ctx

    @property
    def linears(self) -> list[LinearPart]:
        steps = [step for segment in self.segments for step in segment.steps]
        return [part for step in steps if isinstance(step, LinearStep) for part in step.parts]

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Steps inside are a segment, and those behind it another."""
        self.segments.append(Segment(name))
        yield
        self.segments.append(Segment(""))

    # ------------------------------------------------------------------ steps

    def embed(
        self,
        weight: Linear,
        scale: float = 1.0,
        positions: Linear | None = None,
        types: Linear | None = None,
    ) -> Handle:
        if types is not None:
            raise _missing("embeddings of token types")
        if isinstance(weight.held, _native.RowTable):
            raise _missing("tables that stay in their file")
        self._in_order(weight)
        out = self._value(weight.k)
        learned = None if positions is None else Table(positions.matrix, positions.name)
        self._note(EmbedStep(out.number, Table(weight.matrix, weight.name), scale, learned))
        return out

    def rmsnorm(self, x: Handle, weight: F32, eps: float, add: Handle | None = None) -> Handle:
        return self._norm(x, (weight, None), eps, 1, add)

    def head_norm(self, x: Handle, weight: F32, eps: float, add: Handle | None = None) -> Handle:
        return self._norm(x, (weight, None), eps, x.width // len(weight), add)

    def layernorm(
        self, x: Handle, norm: tuple[F32, F32 | None], eps: float, head_dim: int | None = None
    ) -> Handle:
        if head_dim is not None and head_dim != x.width:
            raise _missing("layer norms of heads")
        return self._norm(x, norm, eps, 1, None, layer=True)

    def _norm(
        self,
        x: Handle,
        values: tuple[F32, F32 | None],
        eps: float,
        heads: int,
        add: Handle | None,
        *,
        layer: bool = False,
    ) -> Handle:
        weight, bias = values
        out = self._value(x.width)
        part = NormPart(_native.Norm(weight, bias, heads, eps, layer), weight, bias)
        self._note(NormStep(_number(x), out.number, part, None if add is None else _number(add)))
        return out

    def linear(
        self,
        x: Handle,
        weights: Linear | Sequence[Linear],
        add: Handle | None = None,
        activation: str | None = None,
        softcap: float = 0.0,
    ) -> Handle:
        listed = [weights] if not isinstance(weights, Sequence) else list(weights)
        parts, outs = [], []
        for weight in listed:
            self._in_order(weight)
            bias = weight.bias
            if bias is not None:
                bias = np.pad(bias, (0, padded(weight.n, 32) - weight.n))
            out = self._value(weight.n)
            parts.append(LinearPart(weight.matrix, bias, out.number, weight.name, weight.bias))
            outs.append(out)
        added = None if add is None else _number(add)
        products = self._value(0).number
        self._note(LinearStep(_number(x), parts, added, products, lambda: self.scale))
        y = outs[0] if len(outs) == 1 else Value(-1, 0, tuple(outs))
        if softcap:
            self._capped[y.number] = softcap
        return y if activation is None else self._unary(y, activation)

    def _unary(self, x: Value, activation: str) -> Handle:
        if x.parts:
            raise _missing("activations of several weights at once")
        out = self._value(x.width)
        self._note(UnaryStep(x.number, out.number, activation))
        return out

    def gated(self, x: Handle, gate: Linear, up: Linear, activation: str) -> Handle:
        both = self.linear(x, [gate, up]).split()
        out = self._value(gate.n)
        self._note(GatedStep(_number(both[0]), _number(both[1]), out.number, activation))
        return out

    def xielu(self, x: Handle, up: float, down: float, mid: float) -> Handle:
        raise _missing("xIELU")

    def rope(self, frequencies: F32, factor: float = 1.0) -> Rope:
        angles = Angles(frequencies, factor)
        return Rope(_Turns(angles), 2 * len(frequencies))

    def rotate(self, x: Handle, rope: Rope, head_dim: int) -> Handle:
        assert isinstance(rope.handle, _Turns)
        out = self._value(x.width)
        heads = x.width // head_dim
        self._note(TurnStep(_number(x), out.number, rope.handle.angles, heads, head_dim))
        return out

    def scaled(self, x: Handle, factor: float) -> Handle:
        raise _missing("scaled sums")

    def scale_by_position(self, x: Handle, growth: float, every: int) -> Handle:
        raise _missing("queries that grow with their position")

    def attention(
        self,
        q: Handle,
        k: Handle,
        v: Handle,
        *,
        head_dim: int,
        rope: Rope | None = None,
        scale: float | None = None,
        window: int = 0,
        softcap: float = 0.0,
        causal: bool = True,
        bias: F32 | None = None,
        sinks: F32 | None = None,
    ) -> Handle:
        if sinks is not None:
            raise _missing("attention with sinks")
        if not causal or bias is not None:
            raise _missing("attention to what comes later")
        if rope is not None:
            q, k = self.rotate(q, rope, head_dim), self.rotate(k, rope, head_dim)
        scale = float(head_dim) ** -0.5 if scale is None else scale
        sizes = (q.width // head_dim, k.width // head_dim, head_dim)
        attention = _native.Attention(*sizes, scale, window, softcap)
        out = self._value(q.width)
        self._note(AttentionStep(_number(q), _number(k), _number(v), out.number, attention))
        return out

    def attention_to(
        self,
        q: Handle,
        layer: int,
        *,
        head_dim: int,
        kv_heads: int,
        rope: Rope | None = None,
        scale: float | None = None,
        window: int = 0,
    ) -> Handle:
        raise _missing("keys of an earlier layer")

    def convolution(
        self,
        x: Handle,
        weight: F32,
        *,
        bias: F32 | None = None,
        before: Handle | None = None,
        behind: Handle | None = None,
        activation: str | None = None,
    ) -> Handle:
        raise _missing("convolutions")

    def decays(self, a: Handle, b: Handle, rate: F32, bias: F32) -> Handle:
        raise _missing("gated delta nets")

    def delta_rule(
        self,
        q: Handle,
        k: Handle,
        v: Handle,
        decays: Handle,
        *,
        key_dim: int,
        value_dim: int,
        tiled: bool = False,
    ) -> Handle:
        raise _missing("gated delta nets")

    def gate(self, x: Handle, gate: Handle, activation: str) -> Handle:
        out = self._value(x.width)
        self._note(GatedStep(_number(gate), _number(x), out.number, activation))
        return out

    def route(self, logits: Handle, routing: Routing) -> Handle:
        raise _missing("mixtures of experts")

    def mixture(
        self,
        x: Handle,
        routes: Handle,
        experts: Experts,
        activation: str,
        add: Handle | None = None,
    ) -> Handle:
        raise _missing("mixtures of experts")

    def select(self, x: Handle, pool: str = "row") -> Handle:
        if pool != "row":
            raise _missing("pooling")
        self.segments.append(Segment(""))
        self._selected = True
        out = self._value(x.width)
        self._note(SelectStep(_number(x), out.number))
        return out

    # ------------------------------------------------------------------ the end

    def finish(self, logits: Handle) -> None:
        """End the recording: the last step, which makes logits, becomes the head."""
        last = self.segments[-1].steps.pop()
        if not isinstance(last, LinearStep) or last.parts[0].out != _number(logits):
            raise _missing("a head that is no matrix")
        (part,) = last.parts
        bias = None if part.bias is None else part.bias[: part.matrix.n]
        self.head_part, self.head_softcap = part, self._capped.pop(part.out, 0.0)
        self.head = _native.Head(part.matrix, bias, ACTIVATIONS, self.head_softcap)
        self.hidden = last.x
        if self._capped or last.add is not None or not self._selected:
            raise _missing("a soft cap within layers")
        self.segments = [segment for segment in self.segments if segment.steps]
        readers: dict[int, list[Step]] = {}
        for segment in self.segments:
            for step in segment.steps:
                for number in step.reads:
                    readers.setdefault(number, []).append(step)
        for found in readers.values():
            if len(found) > 1 and any(isinstance(step, SOLE_READERS) for step in found):
                raise _missing("a value that attention or a gate shares with another step")

    def _note(self, step: Step) -> None:
        self.segments[-1].steps.append(step)

    def _value(self, width: int) -> Value:
        self.widths.append(width)
        return Value(len(self.widths) - 1, width)

    def _in_order(self, weight: Linear) -> None:
        if weight.columns is not None:
            raise _missing("weights with their columns in another order (GPTQ's desc_act)")


def _number(x: Handle) -> int:
    assert isinstance(x, Value)
    return x.number


def _missing(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"this model cannot be trained here: {what} have no gradient yet")
