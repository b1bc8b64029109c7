"""A model cut into stages that run one at a time: what is before its layers, each layer, the head.

A family's `forward` is recorded once for every stage. Calls that belong to other stages return
ghosts and record nothing; where a stage takes what an earlier one made, it reads a matrix of saved
activations, with their rows as token ids. So no more than one layer's weights are in memory,
whatever the family. All values of a stage stay readable: nothing in it reuses a buffer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint.packed_folder import ALIGNMENT
from slmq.conversion.source import Source, Wish
from slmq.errors import UnsupportedModelError
from slmq.formats import FORMATS, packed_bytes
from slmq.plan.handle import Handle
from slmq.plan.linear import Linear
from slmq.plan.plan import RecordedPlan

if TYPE_CHECKING:
    from slmq.plan.recorder import Recorder

__all__ = ["FloatSource", "Stage", "StageRun", "Tap", "survey"]

LAYER = re.compile(r"layer (\d+)")
BEFORE = -1  # the stage before all layers; the head is the stage behind the last of them
F32 = npt.NDArray[np.float32]


class FloatSource(Source):
    """A checkpoint whose matrices are wishes and whose vectors are read."""

    def vector(self, name: str, size: int) -> F32:
        """Note a vector, and read it."""
        super().vector(name, size)
        values = self._reader.vector(name, size)
        self.vectors.append((name, values))
        return values

    @cached_property
    def vectors(self) -> list[tuple[str, F32]]:
        """Vectors as `forward` has them, with their names."""
        return []

    def linear_of(self, wish: Wish, matrix: _native.Matrix | None = None) -> Linear:
        """A matrix as `forward` takes it, as it is or as `matrix`, with its bias."""
        found = self._linear(wish) if matrix is None else Linear(matrix)
        bias = None
        if wish.bias is not None:
            bias = self._reader.vector(wish.bias, wish.n, wish.rows)
            bias = bias if wish.order is None else bias[wish.order]
        return Linear(found.matrix, bias, found.columns)


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


NORMS = ("rmsnorm", "layernorm")


class _Ghost:
    """What a call of another stage returned."""

    def __init__(self, parts: int = 1) -> None:
        self.parts = [_Ghost(0) for _ in range(parts)] if parts > 1 else []

    def split(self) -> tuple[_Ghost, ...]:
        return tuple(self.parts)


class _Proxy:
    """What `forward` records into. It passes on the calls of one stage.

    Parameters
    ----------
    recorder : Recorder, optional
        None: every call returns a ghost, and the stages are counted.
    active : int
        The stage that is recorded.
    linear_of : callable
        A wish's weight.
    hidden : Linear, optional
        Saved activations: what the stage takes from those before it.
    n_ctx : int
    source : FloatSource
    vectors : mapping of str to float32
        What takes the place of vectors, by name.
    """

    def __init__(
        self,
        recorder: Recorder | None,
        active: int,
        linear_of: Callable[[Wish], Linear],
        hidden: Linear | None,
        source: FloatSource,
        vectors: Mapping[str, F32] | None = None,
    ) -> None:
        self.n_ctx: int = source.opened.config.max_positions
        self.stages = [Stage(BEFORE)]
        self._taps: list[Tap] = []
        self._norms: dict[int, tuple[str, ...]] = {}  # by the number of their handle in `kept`
        self._elsewhere: set[int] = set()  # handles that are read by more than matrices
        self._names = {id(values): name for name, values in source.vectors}
        self._vectors = vectors or {}
        self.output: Handle | None = None
        self.input: Handle | None = None
        self.kept: list[Any] = []  # handles: their buffers serve no later step
        self._recorder = recorder
        self._active = active
        self._linear_of = linear_of
        self._hidden = hidden
        self._stage = BEFORE
        self._input_ghost: _Ghost | None = None
        self._skipped: list[_Ghost] = []
        self._last = 10**9

    def behind(self, last: int) -> _Proxy:
        """The same, knowing that the head is stage number `last`."""
        self._last = last
        return self

    @property
    def result(self) -> Handle:
        """What the stage passes on; the head: what it takes."""
        found = self.input if self.output is None else self.output
        assert found is not None
        return found

    @property
    def taps(self) -> list[Tap]:
        """The inputs of matrices, each once, with the matrices that read it."""
        merged: dict[int, list[Wish]] = {}
        handles = {id(tap.handle): tap.handle for tap in self._taps}
        for tap in self._taps:
            merged.setdefault(id(tap.handle), []).extend(tap.wishes)
        return [
            Tap(
                tuple(wishes),
                handles[key],
                () if key in self._elsewhere else self._norms.get(key, ()),
            )
            for key, wishes in merged.items()
        ]

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        layer = LAYER.fullmatch(name)
        if layer is None:
            yield
            return
        self._enter(int(layer[1]))
        yield
        self._enter(int(layer[1]) + 1)

    def select(self, x: Any) -> Any:
        """All rows are selected."""
        return x

    def finish(self, logits: Any) -> None:
        raise AssertionError("forward() does not finish a recording")

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *args, **options: self._call(method, args, options)

    def _enter(self, stage: int) -> None:
        self._stage = stage
        if self.stages[-1].number != stage:
            self.stages.append(Stage(stage))

    def _call(self, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given = [*_flat(args), *_flat(options.values())]
        wishes = [value for value in given if isinstance(value, Wish)]
        known = {wish.tensor.name for wish in self.stages[-1].wishes}
        self.stages[-1].wishes += [w for w in wishes if w.tensor.name not in known]
        if self._recorder is None:
            return _Ghost(len(wishes))
        if method == "rope":  # of no stage: angles follow from positions
            return self._keep(getattr(self._recorder, method)(*args, **options))
        if self._stage != self._active:
            for value in given:
                self._leave(value)
            return _Ghost(len(wishes))
        head = self._stage == self._last and wishes
        if any(value in self._skipped for value in given if isinstance(value, _Ghost)):
            return self._skip(0)
        names = [self._names[id(v)] for v in _arrays(args) if id(v) in self._names]
        args = tuple(self._real(value, not head) for value in args)
        options = {key: self._real(value) for key, value in options.items()}
        tapped = wishes and isinstance(args[0], Handle)
        if tapped:
            self._taps.append(Tap(tuple(wishes), args[0]))
        others = [*_flat(args[1:] if tapped else args), *_flat(options.values())]
        self._elsewhere |= {id(value) for value in others if isinstance(value, Handle)}
        if head:  # what comes of it is of no interest
            return self._skip(len(wishes))
        result = self._keep(getattr(self._recorder, method)(*args, **options))
        if method in NORMS and set(options) <= {"eps"} and len(names) == len(_arrays(args)):
            self._norms[id(result)] = tuple(names)
        return result

    def _leave(self, value: Any) -> None:
        """Notes a value of the stage that another stage takes: its output."""
        if not isinstance(value, Handle):
            return
        if self.output is not None and value is not self.output:
            raise UnsupportedModelError(
                "calibration takes layers apart, and a layer of this model passes on more than "
                "one value; use --method rtn without calibration"
            )
        self.output = value

    def _real(self, value: Any, load: bool = True) -> Any:
        if isinstance(value, Wish):
            return self._linear_of(value) if load else value
        if isinstance(value, list) or type(value) is tuple:
            return [self._real(item, load) for item in value]
        if isinstance(value, tuple):  # a norm's weight and bias
            return type(value)(*(self._real(item) for item in value))
        if isinstance(value, np.ndarray):
            return self._vectors.get(self._names.get(id(value), ""), value)
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
            self.input = self._keep(self._recorder.embed(self._hidden))
        return self.input

    def _keep(self, result: Any) -> Any:
        self.kept.append(result)
        return result

    def _skip(self, parts: int) -> _Ghost:
        ghost = _Ghost(parts)
        self._skipped += [ghost, *ghost.parts]
        return ghost


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list) or type(value) is tuple:
            yield from _flat(value)
        else:
            yield value


def _arrays(args: tuple[Any, ...]) -> list[F32]:
    """The vectors among arguments, those of a norm included."""
    found: list[F32] = []
    for value in args:
        found += _arrays(value) if isinstance(value, tuple) else []
        found += [value] if isinstance(value, np.ndarray) else []
    return found


def survey(source: FloatSource) -> list[Stage]:
    """The stages of a model, in order, with the matrices that each uses."""
    proxy = _Proxy(None, BEFORE, source.linear_of, None, source)
    source.opened.family.forward(proxy, source.weights, source.opened.config)
    return proxy.stages


def _untouched(n: int, k: int) -> Linear:
    """A matrix that is never read, so that its zeros take no memory."""
    size = packed_bytes(FORMATS["f32"], n, k)
    zeros = np.zeros(size + ALIGNMENT, np.uint8)
    begin = -zeros.ctypes.data % ALIGNMENT
    return Linear(_native.Matrix.from_packed("f32", n, k, zeros[begin : begin + size]))


class StageRun:
    """One stage, recorded over its weights.

    Parameters
    ----------
    source : FloatSource
    stage : Stage
    last : int
        The number of the last stage, the head.
    tokens : int32[windows, rows]
        Token ids.
    hidden : float32[windows * rows, width], optional
        What the stage before made of them; None for the first one.
    weights : callable
        The weight that a wish is; `FloatSource.linear_of`, or a cache of it, or rounded ones.
    vectors : mapping of str to float32, optional
        What takes the place of vectors, by name.
    """

    def __init__(
        self,
        source: FloatSource,
        stage: Stage,
        last: int,
        tokens: npt.NDArray[np.int32],
        hidden: F32 | None,
        threads: int,
        weights: Callable[[Wish], Linear],
        vectors: Mapping[str, F32] | None = None,
    ) -> None:
        config = source.opened.config
        self._rows = tokens.shape[1]
        if hidden is None:
            self._ids = tokens
            saved = None
            size = config.vocab_size
        else:
            size = len(hidden)
            self._ids = np.arange(size, dtype=np.int32).reshape(tokens.shape)
            raw = np.ascontiguousarray(hidden).reshape(-1).view(np.uint8)
            packed = _native.Matrix.pack(
                "f32", raw, size, hidden.shape[1], "f32", None, None, threads
            )
            saved = Linear(packed)

        def record(recorder: Recorder) -> Handle:
            self._proxy = _Proxy(recorder, stage.number, weights, saved, source, vectors).behind(
                last
            )
            source.opened.family.forward(self._proxy, source.weights, config)
            result = self._proxy.result
            # A plan ends with logits, for which nobody asks.
            return recorder.linear(recorder.select(result), _untouched(size, result.width))

        self._plan = RecordedPlan(
            record,
            threads=threads,
            max_rows=self._rows,
            max_outputs=1,
            vocabulary=size,
            kv_dtype="f32",
            activations="a16g32",
            n_ctx=config.max_positions,
        )

    @property
    def taps(self) -> list[Tap]:
        """The inputs of the stage's matrices."""
        return self._proxy.taps

    def windows(self) -> Iterator[Callable[[Handle | None], F32]]:
        """Run window by window; yields what reads a tap's values, or with None the output's."""
        for ids in self._ids:
            sequence = self._plan.cache.sequence()
            self._plan.run(ids, [(sequence, len(ids))], np.zeros(0, np.int32))
            sequence.truncate(0)
            yield self._read

    def _read(self, handle: Handle | None) -> F32:
        buffer, offset, width = (self._proxy.result if handle is None else handle).slice
        return np.ascontiguousarray(self._plan.native.read(buffer)[:, offset : offset + width])
