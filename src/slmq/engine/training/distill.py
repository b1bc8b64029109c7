"""Learning from a teacher: the loss is how far a model's distributions are from another's.

The divergence of Kullback and Leibler from all that the teacher expects of the next token, not only
from the token that a text has (Hinton et al., "Distilling the Knowledge in a Neural Network",
2015). With the floats of a model as the teacher of its rounded weights, an adapter learns what
rounding has lost.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.engine.training.base import Base, network_of, open_base
from slmq.engine.training.network import Network
from slmq.engine.training.options import TrainOptions
from slmq.engine.training.passes import Piece
from slmq.engine.training.steps import ACTIVATIONS, LinearPart
from slmq.errors import UnsupportedModelError
from slmq.formats import padded
from slmq.machine.exact import exact_log

__all__ = ["Distillation", "distillation", "open_teacher"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
ROWS = 16  # whose logits are there at a time
SMALLEST = 1e-38  # probability that is told from zero
SAMPLE = "The sum of 12 and 345? Ça va, Straße 北京 привет!\n"  # tokens of two models differ in it


class Distillation:
    """The divergence from a teacher, as the loss of a network.

    Parameters
    ----------
    student, teacher : Network

    Raises
    ------
    UnsupportedModelError
        The two have different tokens, or logits with a soft cap.
    """

    def __init__(self, student: Network, teacher: Network) -> None:
        self._student = student
        self._teacher = teacher
        own, theirs = _head(student), _head(teacher)
        if own.matrix.n != theirs.matrix.n:
            raise UnsupportedModelError(
                f"teacher: expected the model's {own.matrix.n} tokens, got {theirs.matrix.n}: is "
                f"it another model?"
            )

    def losses(self, piece: Piece, x: F32, weight: float, dx: F32 | None) -> F64:
        """The divergence at every target, and `weight` times the gradient of their sum."""
        taught = self._teacher.hidden(piece)
        found = []
        for first in range(0, len(x), ROWS):
            rows = slice(first, first + ROWS)
            there, here = _logits(self._teacher, taught[rows]), _logits(self._student, x[rows])
            q = np.stack([_native.softmax(row) for row in there])
            p = np.stack([_native.softmax(row) for row in here])
            found.append(_divergences(there, here, q, p))
            if dx is not None:
                head, operators = _head(self._student), self._student.operators
                slope = _native.zero_rows(len(p), head.matrix.n)
                slope[:, : head.matrix.n] = (p - q) * np.float32(weight)
                head.add_slopes(operators, x[rows], slope)
                operators.linear_back([(head.matrix, None, None, slope)], False, dx[rows])
        return np.concatenate(found)


def distillation(
    student: Network,
    base: Base,
    teacher: Base,
    options: TrainOptions,
    *,
    rows: int,
    isa: str | None = None,
) -> Distillation:
    """The loss against a teacher that was opened with `open_teacher`.

    Raises
    ------
    UnsupportedModelError
    """
    ids = [b.tokenizer.encode(SAMPLE) for b in (base, teacher)]
    if ids[0] != ids[1]:
        raise UnsupportedModelError(
            f"teacher: expected the tokens of {base.name}, got others: is it another model?"
        )
    without = network_of(teacher, options, rows=rows, isa=isa, adapted=False)
    return Distillation(student, without)


def open_teacher(path: str | os.PathLike[str], options: TrainOptions) -> Base:
    """A model as a teacher: in float32, whatever it is stored in.

    Raises
    ------
    CheckpointError, UnsupportedModelError, TokenizerError
    """
    return open_base(path, replace(options, type="lora"), name=os.fspath(path), format="f32")


def _head(network: Network) -> LinearPart:
    """The matrix that makes logits, which nothing is done to afterwards."""
    head = network.tape.head_part
    if network.tape.head_softcap:
        raise UnsupportedModelError("a teacher: a soft cap of logits has no divergence here yet")
    return head


def _logits(network: Network, x: F32) -> F32:
    """Logits of some rows: float32[rows, tokens]."""
    head = _head(network)
    y = _native.zero_rows(len(x), padded(head.matrix.n, 32))
    network.operators.linear(x, [(head.matrix, head.bias, None, y)], ACTIVATIONS)
    return np.ascontiguousarray(y[:, : head.matrix.n])


def _divergences(there: F32, here: F32, q: F32, p: F32) -> F64:
    """The sum over tokens of q (log q - log p), by rows.

    log q - log p is the difference of logits but for a number, which the likeliest token tells.
    """
    found = []
    for taught, own, wanted, had in zip(there, here, q, p, strict=True):
        best = int(np.argmax(wanted))
        away = taught.astype(np.float64) - own
        apart = exact_log(float(wanted[best])) - exact_log(max(float(had[best]), SMALLEST))
        in_order = np.add.accumulate(wanted * (away - away[best]))  # no library's own order
        found.append(float(in_order[-1]) + apart)
    return np.array(found, np.float64)
