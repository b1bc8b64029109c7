"""What one stage of a model records: its own steps, and saved activations for those before it.

Steps of other stages return ghosts and record nothing. All values of the stage stay readable:
nothing in it reuses a buffer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from slmq.errors import UnsupportedModelError
from slmq.plan.experts import Experts, Routing
from slmq.plan.handle import Handle, Rope
from slmq.plan.linear import Linear
from slmq.plan.recorder import Recorder
from slmq.quantizer.source import FloatSource, name_of
from slmq.weights.survey import Wish

__all__ = ["BEFORE", "Stage", "StageRecording", "Tap"]

LAYER = re.compile(r"layer (\d+)")
BEFORE = -1  # the stage before all layers; the head is the stage behind the last of them
NO_STAGE = -2
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tap:
    """An input of matrices.

    Attributes
    ----------
    wishes : tuple of Wish
        The matrices that read it.
    handle : Handle
    norm : tuple of str
        The vectors of the norm that makes it, if nothing but these matrices reads it.
    """

    wishes: tuple[Wish, ...]
    handle: Handle
    norm: tuple[str, ...] = ()


@dataclass
class Stage:
    """One stage: its number and the matrices that it uses."""

    number: int
    wishes: list[Wish] = field(default_factory=list)


class _Ghost(Handle):
    """What a step of another stage returns: a handle of no buffer."""

    def __init__(self, parts: int = 1) -> None:
        self.parts = tuple(_Ghost(0) for _ in range(parts)) if parts > 1 else ()

    def split(self) -> tuple[Handle, ...]:
        return self.parts

    def columns(self, first: int, width: int) -> Handle:
        return _Ghost()

    def __repr__(self) -> str:
        return f"_Ghost({len(self.parts)} parts)"


class StageRecording:
    """What `forward` records into: a `Recording` that passes on the steps of one stage.

    Parameters
    ----------
    source : FloatSource
    recorder : Recorder, optional
        None: every step returns a ghost, and the stages are counted.
    active : int
        The stage that is recorded.
    last : int
        The stage that is the head.
    weights : callable, optional
        A wish's weight; `source.linear_of` unless given.
    hidden : Linear, optional
        Saved activations: what the stage takes from those before it.
    vectors : mapping of str to float32
        What takes the place of vectors, by name.
    """

    def __init__(
        self,
        source: FloatSource,
        recorder: Recorder | None = None,
        active: int = BEFORE,
        last: int = NO_STAGE,
        weights: Callable[[Wish], Linear] | None = None,
        hidden: Linear | None = None,
        vectors: Mapping[str, F32] | None = None,
    ) -> None:
        self.n_ctx = source.opened.config.max_positions
        self.stages = [Stage(BEFORE)]
        self.output: Handle | None = None
        self.input: Handle | None = None
        self._source = source
        self._recorder = recorder
        self._active = active
        self._last = last
        self._weights = weights or source.linear_of
        self._hidden = hidden
        self._vectors = vectors or {}
        self._stage = BEFORE
        self._kept: list[Handle | Rope] = []  # their buffers serve no later step
        self._taps: list[Tap] = []
        self._norms: dict[Handle, tuple[str, ...]] = {}  # the vectors that made a value
        self._elsewhere: set[Handle] = set()  # what is read by more than matrices
        self._input_ghost: Handle | None = None
        self._skipped: set[Handle] = set()

    @property
    def result(self) -> Handle:
        """What the stage passes on; the head: what it takes."""
        found = self.input if self.output is None else self.output
        assert found is not None
        return found

    @property
    def taps(self) -> list[Tap]:
        """The inputs of matrices, each once, with the matrices that read it."""
        merged: dict[Handle, list[Wish]] = {}
        for tap in self._taps:
            merged.setdefault(tap.handle, []).extend(tap.wishes)
        return [
            Tap(
                tuple(wishes),
                handle,
                () if handle in self._elsewhere else self._norms.get(handle, ()),
            )
            for handle, wishes in merged.items()
        ]

    # --- steps of `Recording` -------------------------------------------------------------------

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        layer = LAYER.fullmatch(name)
        if layer is None:
            yield
            return
        self._enter(int(layer[1]))
        yield
        self._enter(int(layer[1]) + 1)

    def embed(
        self,
        weight: Linear,
        scale: float = 1.0,
        positions: Linear | None = None,
        types: Linear | None = None,
    ) -> Handle:
        tables = [weight, *(table for table in (positions, types) if table is not None)]

        def record(recorder: Recorder) -> Handle:
            learned = [None if t is None else self._weight(t) for t in (positions, types)]
            return recorder.embed(self._weight(weight), scale, *learned)

        return self._step(record, [], tables)

    def rmsnorm(self, x: Handle, weight: F32, eps: float, add: Handle | None = None) -> Handle:
        def record(recorder: Recorder) -> Handle:
            return recorder.rmsnorm(self._in(x), self._vector(weight), eps, self._maybe(add))

        return self._step(record, [x, add], norm=(weight,) if add is None else ())

    def head_norm(self, x: Handle, weight: F32, eps: float, add: Handle | None = None) -> Handle:
        def record(recorder: Recorder) -> Handle:
            return recorder.head_norm(self._in(x), self._vector(weight), eps, self._maybe(add))

        return self._step(record, [x, add])

    def layernorm(
        self, x: Handle, norm: tuple[F32, F32 | None], eps: float, head_dim: int | None = None
    ) -> Handle:
        weight, bias = norm

        def record(recorder: Recorder) -> Handle:
            values = self._vector(weight), None if bias is None else self._vector(bias)
            return recorder.layernorm(self._in(x), values, eps, head_dim)

        vectors = (weight,) if bias is None else (weight, bias)
        return self._step(record, [x], norm=vectors if head_dim is None else ())

    def linear(
        self,
        x: Handle,
        weights: Linear | Sequence[Linear],
        add: Handle | None = None,
        activation: str | None = None,
        softcap: float = 0.0,
    ) -> Handle:
        listed = [weights] if isinstance(weights, Linear) else list(weights)

        def record(recorder: Recorder) -> Handle:
            loaded = [self._weight(weight) for weight in listed]
            return recorder.linear(self._in(x), loaded, self._maybe(add), activation, softcap)

        return self._step(record, [add], listed, tapped=x)

    def gated(self, x: Handle, gate: Linear, up: Linear, activation: str) -> Handle:
        def record(recorder: Recorder) -> Handle:
            weights = self._weight(gate), self._weight(up)
            return recorder.gated(self._in(x), *weights, activation)

        return self._step(record, [], [gate, up], tapped=x)

    def xielu(self, x: Handle, up: float, down: float, mid: float) -> Handle:
        def record(recorder: Recorder) -> Handle:
            return recorder.xielu(self._in(x), up, down, mid)

        return self._step(record, [x])

    def rotate(self, x: Handle, rope: Rope, head_dim: int) -> Handle:
        def record(recorder: Recorder) -> Handle:
            return recorder.rotate(self._in(x), rope, head_dim)

        return self._step(record, [x])

    def scaled(self, x: Handle, factor: float) -> Handle:
        def record(recorder: Recorder) -> Handle:
            return recorder.scaled(self._in(x), factor)

        return self._step(record, [x])

    def scale_by_position(self, x: Handle, growth: float, every: int) -> Handle:
        def record(recorder: Recorder) -> Handle:
            return recorder.scale_by_position(self._in(x), growth, every)

        return self._step(record, [x])

    def rope(self, frequencies: F32, factor: float = 1.0) -> Rope:
        """Of no stage: angles follow from positions."""
        if self._recorder is None:
            return Rope(_Ghost(), 2 * len(frequencies))
        rope = self._recorder.rope(frequencies, factor)
        self._kept.append(rope)
        return rope

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
        def record(recorder: Recorder) -> Handle:
            return recorder.attention(
                self._in(q),
                self._in(k),
                self._in(v),
                head_dim=head_dim,
                rope=rope,
                scale=scale,
                window=window,
                softcap=softcap,
                causal=causal,
                bias=bias,
                sinks=sinks,
            )

        return self._step(record, [q, k, v])

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
        def record(_recorder: Recorder) -> Handle:
            raise UnsupportedModelError(
                f"calibration takes layers apart, and a layer of this model sees the keys of layer "
                f"{layer}; use --method rtn without calibration"
            )

        return self._step(record, [q])

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
        def record(recorder: Recorder) -> Handle:
            return recorder.convolution(
                self._in(x),
                weight,
                bias=bias,
                before=self._maybe(before),
                behind=self._maybe(behind),
                activation=activation,
            )

        return self._step(record, [x, before, behind])

    def decays(self, a: Handle, b: Handle, rate: F32, bias: F32) -> Handle:
        def record(recorder: Recorder) -> Handle:
            return recorder.decays(self._in(a), self._in(b), rate, bias)

        return self._step(record, [a, b])

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
        def record(recorder: Recorder) -> Handle:
            inputs = [self._in(x) for x in (q, k, v, decays)]
            return recorder.delta_rule(*inputs, key_dim=key_dim, value_dim=value_dim, tiled=tiled)

        return self._step(record, [q, k, v, decays])

    def gate(self, x: Handle, gate: Handle, activation: str) -> Handle:
        def record(recorder: Recorder) -> Handle:
            return recorder.gate(self._in(x), self._in(gate), activation)

        return self._step(record, [x, gate])

    def route(self, logits: Handle, routing: Routing) -> Handle:
        def record(recorder: Recorder) -> Handle:
            return recorder.route(self._in(logits), routing)

        return self._step(record, [logits])

    def mixture(
        self,
        x: Handle,
        routes: Handle,
        experts: Experts,
        activation: str,
        add: Handle | None = None,
    ) -> Handle:
        """Gates and ups are rounded for the inputs of all rows, and downs for themselves."""

        def record(recorder: Recorder) -> Handle:
            gate, up, down = (
                tuple(self._weight(weight) for weight in weights)
                for weights in (experts.gate, experts.up, experts.down)
            )
            loaded = replace(experts, gate=gate, up=up, down=down)
            return recorder.mixture(
                self._in(x), self._in(routes), loaded, activation, self._maybe(add)
            )

        taking = [*experts.gate, *experts.up]
        return self._step(record, [routes, add], taking, tapped=x, untapped=experts.down)

    def select(self, x: Handle, pool: str = "row") -> Handle:
        """All rows are selected; decoders, which calibration takes apart, pool none."""
        return x

    # --- what becomes of a step -----------------------------------------------------------------

    def _enter(self, stage: int) -> None:
        self._stage = stage
        if self.stages[-1].number != stage:
            self.stages.append(Stage(stage))

    def _step(
        self,
        record: Callable[[Recorder], Handle],
        reads: Sequence[Handle | None],
        weights: Sequence[Linear] = (),
        *,
        tapped: Handle | None = None,
        untapped: Sequence[Linear] = (),
        norm: tuple[F32, ...] = (),
    ) -> Handle:
        """Record a step if it is one of the stage.

        `tapped` is what its weights read, `reads` what it reads besides; `untapped` are weights
        that read something else. `norm` are the vectors of a norm whose output may be rescaled.
        """
        wishes = [self._source.wish(weight.name) for weight in weights]
        others = [self._source.wish(weight.name) for weight in untapped]
        known = {wish.name for wish in self.stages[-1].wishes}
        self.stages[-1].wishes += [w for w in [*wishes, *others] if w.name not in known]
        if self._recorder is None:
            return _Ghost(len(wishes))
        besides = [value for value in reads if value is not None]
        given = besides if tapped is None else [tapped, *besides]
        if self._stage != self._active:
            for value in given:
                self._leave(value)
            return _Ghost(len(wishes))
        if not self._skipped.isdisjoint(given):
            return self._skip(0)
        if tapped is not None:
            self._taps.append(Tap(tuple(wishes), self._in(tapped)))
        self._elsewhere |= {self._in(value) for value in besides}
        if self._stage == self._last and wishes:  # what comes of it is of no interest
            return self._skip(len(wishes))
        result = record(self._recorder)
        self._kept.append(result)
        names = tuple(name_of(values) for values in norm)
        if names and all(names):
            self._norms[result] = names
        return result

    def _leave(self, value: Handle) -> None:
        """Notes a value of the stage that another stage takes: its output."""
        if isinstance(value, _Ghost):
            return
        if self.output is not None and value is not self.output:
            raise UnsupportedModelError(
                "calibration takes layers apart, and a layer of this model passes on more than "
                "one value; use --method rtn without calibration"
            )
        self.output = value

    def _weight(self, noted: Linear) -> Linear:
        return self._weights(self._source.wish(noted.name))

    def _vector(self, values: F32) -> F32:
        return self._vectors.get(name_of(values), values)

    def _maybe(self, value: Handle | None) -> Handle | None:
        return None if value is None else self._in(value)

    def _in(self, value: Handle) -> Handle:
        """A value of the stage; saved activations in the place of what came before it."""
        if not isinstance(value, _Ghost):
            return value
        if self._input_ghost not in (None, value) or self._hidden is None:
            raise UnsupportedModelError(
                "calibration takes layers apart, and a layer of this model takes more than one "
                "value; use --method rtn without calibration"
            )
        if self.input is None:
            assert self._recorder is not None
            self._input_ghost = value
            self.input = self._recorder.embed(self._hidden)
            self._kept.append(self.input)
        return self.input

    def _skip(self, parts: int) -> Handle:
        ghost = _Ghost(parts)
        self._skipped |= {ghost, *ghost.parts}
        return ghost
