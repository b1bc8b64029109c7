"""A model that learns: its steps run forward, and backward from the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.engine.training.parameters import Parameters
from slmq.engine.training.passes import Arena, Pass, Piece
from slmq.engine.training.steps import LinearPart, LinearStep, Step
from slmq.engine.training.tape import Segment, Tape

__all__ = ["Loss", "Network"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


class Loss(Protocol):
    """What a model is to make small."""

    def losses(self, piece: Piece, x: F32, weight: float, dx: F32 | None) -> F64:
        """The loss of every target, from what the head reads.

        `weight` times the gradient of their sum goes into `dx`, if there is one.
        """


class Network:
    """The steps of a model with the parameters that are trained.

    Parameters
    ----------
    tape : Tape
        Finished.
    parameters : Parameters
    operators : _native.Operators
    rows : int
        Most rows of a piece.
    recompute : bool
        Whether layers are computed anew on the way back: less memory, more time, the same bits.

    Attributes
    ----------
    loss : Loss
        By default that of the tokens that a text has.
    """

    def __init__(
        self,
        tape: Tape,
        parameters: Parameters,
        operators: _native.Operators,
        *,
        rows: int,
        recompute: bool,
    ) -> None:
        self.parameters = parameters
        self.operators = operators
        self.tape = tape
        self.loss: Loss = _NextTokens(operators, tape.head, tape.head_part)
        self._arena = Arena(rows)
        parameters.attach(tape)
        segments = tape.segments
        for step in (step for segment in segments for step in segment.steps):
            if isinstance(step, LinearStep):
                tape.widths[step.products] = step.join()
        self._made = [{n for step in segment.steps for n in step.makes} for segment in segments]
        self._read = [{n for step in segment.steps for n in step.reads} for segment in segments]
        self._read[-1].add(tape.hidden)
        self._later = [set().union(*self._read[i + 1 :]) for i in range(len(segments))]
        self._again: dict[int, list[Step]] = {}
        trained = [i for i, segment in enumerate(segments) if _learns(segment)]
        self._first = trained[0] if trained else len(segments)
        self._kept = [self._keeps(i, recompute=recompute) for i in range(len(segments))]

    @property
    def nbytes(self) -> int:
        """Bytes of all values and gradients, and of the operators' scratch memory."""
        return self._arena.nbytes + self.operators.scratch_bytes

    def losses(self, piece: Piece) -> F64:
        """The loss of every target."""
        with self._forward(piece, learning=False) as p:
            return self.loss.losses(piece, p.value(self.tape.hidden), 1.0, None)

    def learn(self, piece: Piece, weight: float) -> F64:
        """The loss of every target; `weight` times the gradient of their sum is added up."""
        with self._forward(piece, learning=True) as p:
            x = p.value(self.tape.hidden)
            dx, _ = p.slope(self.tape.hidden, len(x))
            losses = self.loss.losses(piece, x, weight, dx)
            self._together(lambda: self._backward(p))
            return losses

    def hidden(self, piece: Piece) -> F32:
        """What the head reads of the rows that count."""
        with self._forward(piece, learning=False) as p:
            found: F32 = p.value(self.tape.hidden).copy()
            return found

    def _together(self, work: Callable[[], None]) -> None:
        """What operators are asked for in `work` runs behind it, without Python in between."""
        self.operators.hold()
        try:
            work()
            self.operators.run_held()
        except BaseException:
            self.operators.drop_held()
            raise

    @contextmanager
    def _forward(self, piece: Piece, *, learning: bool) -> Iterator[Pass]:
        p = Pass(self.operators, self._arena, piece, self.tape.widths)
        try:
            self._together(lambda: self._run(p, learning=learning))
            yield p
        finally:
            p.close()

    def _run(self, p: Pass, *, learning: bool) -> None:
        last = len(self._made) - 1
        for i, segment in enumerate(self.tape.segments):
            for step in segment.steps:
                step.run(p)
            if i == last:
                return  # its values are needed at once
            if learning:
                _drop(p, self._made[i] - self._later[i] - self._kept[i])
            else:
                _drop(p, set().union(*self._made[: i + 1]) - self._later[i])

    def _backward(self, p: Pass) -> None:
        for i in range(len(self._made) - 1, self._first - 1, -1):
            segment = self.tape.segments[i]
            if i not in self._again:  # every pass has kept the same
                self._again[i] = _gone_steps(p, segment)
            for step in self._again[i]:
                step.run(p)
            for step in reversed(segment.steps):
                step.back(p)
            _drop(p, self._made[i])

    def _keeps(self, i: int, *, recompute: bool) -> set[int]:
        """What of a segment stays until its way back: all that is needed, or what took long."""
        if i < self._first or recompute:
            return set()
        steps = self.tape.segments[i].steps
        cheap = {n for step in steps if step.cheap for n in step.makes}
        needed = {n for step in steps for n in step.needs}
        # What a cheap step reads must be there to run it again.
        needed |= {n for step in steps if step.cheap for n in step.reads}
        return needed - cheap


class _NextTokens:
    """The cross-entropy of the tokens that a text has."""

    def __init__(self, operators: _native.Operators, head: _native.Head, part: LinearPart) -> None:
        self._operators = operators
        self._head = head
        self._part = part

    def losses(self, piece: Piece, x: F32, weight: float, dx: F32 | None) -> F64:
        part = self._part
        return self._operators.loss(
            self._head, x, piece.targets, weight, dx, part.slope, part.bias_slope
        )


def _learns(segment: Segment) -> bool:
    return any(step.learns for step in segment.steps)


def _gone_steps(p: Pass, segment: Segment) -> list[Step]:
    """The steps of a segment whose needed results are gone, and those that make what these read."""
    wanted = {n for step in segment.steps for n in step.needs}
    running = []
    for step in reversed(segment.steps):
        if any(n in wanted and not p.has(n) for n in step.makes):
            running.append(step)
            wanted |= set(step.reads)
    return running[::-1]


def _drop(p: Pass, numbers: Iterable[int]) -> None:
    for number in numbers:
        p.drop(number)
