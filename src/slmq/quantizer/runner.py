"""Running the stages of one model over one text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.errors import CheckpointError
from slmq.plan.linear import Linear
from slmq.quantizer.calibration import Calibration
from slmq.quantizer.grids import Rounded
from slmq.quantizer.methods import Inputs, round_with
from slmq.quantizer.recording import Stage
from slmq.quantizer.source import FloatSource
from slmq.quantizer.stages import StageRun, survey
from slmq.weights.survey import Wish

__all__ = ["Runner", "StageWeights", "floats_of", "round_wish"]

F32 = npt.NDArray[np.float32]


class Runner:
    """A model, taken apart, and a text.

    Attributes
    ----------
    source : FloatSource
    text : Calibration
    stages : list of Stage
    threads : int
    """

    def __init__(self, source: FloatSource, text: Calibration, threads: int) -> None:
        self.source = source
        self.text = text
        self.threads = threads
        self.stages = survey(source)
        # How many stages use a matrix: an embedding that is the head, too, is used by two.
        self.uses = Counter(w.name for stage in self.stages for w in stage.wishes)

    def run(
        self,
        stage: Stage,
        hidden: F32 | None,
        weights: Callable[[Wish], Linear],
        windows: npt.NDArray[np.intp] | None = None,
        *,
        cut: bool = False,
        vectors: Mapping[str, F32] | None = None,
    ) -> StageRun:
        """Record a stage to be run over all windows or some, after what was passed on to it.

        `cut` says that `hidden` has the rows of these windows only; `vectors` take the place of
        those of these names.
        """
        tokens = self.text.tokens
        if windows is not None:
            if hidden is not None and not cut:
                hidden = self.of_windows(hidden, windows)
            tokens = tokens[windows]
        last = self.stages[-1].number
        return StageRun(self.source, stage, last, tokens, hidden, self.threads, weights, vectors)

    def of_windows(self, hidden: F32, windows: npt.NDArray[np.intp]) -> F32:
        """The rows of some windows."""
        width = hidden.shape[1]
        chosen: F32 = hidden.reshape(*self.text.tokens.shape, width)[windows].reshape(-1, width)
        return chosen


class StageWeights:
    """The weights of a stage, read once; some replaced by packed matrices.

    Parameters
    ----------
    source : FloatSource
    packed : mapping of str to Matrix
        What takes the place of matrices, by name.
    below : StageWeights, optional
        Where the others come from; by default from the source.
    """

    def __init__(
        self,
        source: FloatSource,
        packed: Mapping[str, _native.Matrix] | None = None,
        below: StageWeights | None = None,
    ) -> None:
        self._source = source
        self._packed = packed or {}
        self._below = below
        self._found: dict[str, Linear] = {}

    def __call__(self, wish: Wish) -> Linear:
        """The weight that a wish is."""
        name = wish.name
        if name not in self._found:
            matrix = self._packed.get(name)
            self._found[name] = (
                self._below(wish)
                if matrix is None and self._below is not None
                else self._source.linear_of(wish, matrix)
            )
        return self._found[name]


def floats_of(source: FloatSource, wish: Wish) -> F32:
    """A matrix: float32[n, k]."""
    return np.concatenate(list(source.floats(wish)))


def round_wish(
    source: FloatSource, wish: Wish, w: F32, fmt: str, method: str, inputs: Inputs | F32 | None,
    threads: int,
) -> Rounded:  # fmt: skip
    """`round_with`, whose errors name file and tensor."""
    try:
        return round_with(method, w, fmt, inputs, threads=threads)
    except ValueError as error:
        file = source.checkpoint.path
        raise CheckpointError(str(error), file=file, tensor=wish.stored) from None
