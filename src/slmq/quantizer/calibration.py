"""What a text sends through a model: windows of tokens, and second moments of every input."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint import Checkpoint
from slmq.errors import DataError
from slmq.quantizer.stages import StageRun
from slmq.tokenizer import load_tokenizer
from slmq.weights.survey import Wish

__all__ = ["Calibration", "Collected", "Moments", "collect", "read_calibration", "test_windows"]

WINDOW = 512
WINDOWS = 20
SHORTEST = 16  # tokens of a text that can calibrate at all
TEST_EVERY = 5  # of so many windows, the last one measures what the others have chosen
TEST_ROWS = 512

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """A text as windows of tokens.

    Attributes
    ----------
    tokens : int32[windows, rows]
    sha256 : str
        Of the text's file.
    """

    tokens: npt.NDArray[np.int32]
    sha256: str


def read_calibration(path: Path, checkpoint: Checkpoint, context: int) -> Calibration:
    """Cut a text file into windows of tokens: spread over the text, none longer than `context`.

    Raises
    ------
    DataError
        The file cannot be read, is no UTF-8 text or too short.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text; {error}") from error
    tokenizer = load_tokenizer(checkpoint)
    ids = tokenizer.encode(text, add_special=False)
    if len(ids) < SHORTEST:
        raise DataError(f"{path}: expected at least {SHORTEST} tokens of text, found {len(ids)}")
    full = tokenizer.encode(text[:1], add_special=True)
    first = [full[0]] if full and full[0] == tokenizer.bos_id else []
    rows = min(WINDOW, context, len(ids) + len(first))
    each = rows - len(first)
    count = min(WINDOWS, len(ids) // each)
    step = len(ids) // count
    windows = [first + ids[i * step : i * step + each] for i in range(count)]
    return Calibration(np.array(windows, np.int32), hashlib.sha256(raw).hexdigest())


@dataclass
class Moments:
    """What was seen of an input of k channels that some matrices read.

    Attributes
    ----------
    wishes : tuple of Wish
    gram : float64[k, k]
        Mean of x x^T over the tokens.
    test : float32[rows, k]
        Inputs of tokens that `gram` has not seen, where there are enough of them.
    norm : tuple of str
        As of the tap.
    """

    wishes: tuple[Wish, ...]
    gram: npt.NDArray[np.float64]
    test: F32
    norm: tuple[str, ...] = ()

    @property
    def importance(self) -> F32:
        """Mean square of every channel: float32[k]."""
        return np.ascontiguousarray(np.diagonal(self.gram)).astype(np.float32)

    def scaled(self, scales: F32) -> Moments:
        """The same where every channel is divided by its scale: float32[k]."""
        wide = scales.astype(np.float64)
        return Moments(
            self.wishes, self.gram / (wide[:, None] * wide), self.test / scales, self.norm
        )


class Collected(NamedTuple):
    """What one run over a stage shows.

    Attributes
    ----------
    moments : list of Moments
        Of every input of its matrices.
    passed_on : float32[windows * rows, width]
        Its output for all windows.
    """

    moments: list[Moments]
    passed_on: F32


def collect(run: StageRun, windows: int, threads: int) -> Collected:
    """Run a stage over all windows and sum up what its matrices read.

    Everything is summed in one order: products by our own kernels, whose sums run over time; what
    windows add up to, element by element.
    """
    taps = run.taps
    grams = [np.zeros((tap.handle.width, tap.handle.width)) for tap in taps]
    tests: list[list[F32]] = [[] for _ in taps]
    seen, output = 0, []
    held_back = windows >= TEST_EVERY
    per_window = max(1, TEST_ROWS // max(1, windows // TEST_EVERY))
    for number, read in enumerate(run.windows()):
        testing = held_back and number % TEST_EVERY == TEST_EVERY - 1
        for i, tap in enumerate(taps):
            x = read(tap.handle)
            if testing or not held_back:
                tests[i].append(x[:: max(1, len(x) // per_window)])
            if not testing:
                np.add(grams[i], _gram(x, threads), out=grams[i])
        output.append(read(None))
        seen += 0 if testing else len(output[-1])
    moments = []
    for tap, gram, test in zip(taps, grams, tests, strict=True):
        np.divide(gram, seen, out=gram)  # those of wide inputs are the largest arrays of all
        moments.append(Moments(tap.wishes, gram, np.concatenate(test), tap.norm))
    return Collected(moments, np.concatenate(output))


def test_windows(windows: int) -> npt.NDArray[np.intp]:
    """The first windows that are held back: at most two."""
    if windows < TEST_EVERY:
        return np.zeros(1, np.intp)
    return np.arange(TEST_EVERY - 1, windows, TEST_EVERY)[:2]


def _gram(x: F32, threads: int) -> F32:
    columns = np.ascontiguousarray(x.T)
    k, rows = columns.shape
    raw = columns.reshape(-1).view(np.uint8)
    packed = _native.Matrix.pack("f32", raw, k, rows, "f32", None, None, threads)
    return packed.matmul(columns, threads)
