"""Perplexity of a text by the usual protocol, so that numbers compare with other engines'.

The text is tokenized once, without special tokens, and cut into consecutive windows of `ctx`
tokens. Each window is a sequence of its own; the tokens of its second half are scored, each given
all that precede it in the window. A tokenizer that begins texts with BOS has it in place of the
first token of every window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slmq.errors import Error

if TYPE_CHECKING:
    import os

    import numpy.typing as npt

    from slmq.engine import Engine
    from slmq.tokenizer import Tokenizer

__all__ = ["PerplexityResult", "log_probabilities", "perplexity", "read_text"]

BLOCK = 64  # rows of logits in memory at a time
MIN_CTX = 8


@dataclass(frozen=True)
class PerplexityResult:
    """What `perplexity` found.

    Attributes
    ----------
    perplexity : float
        exp of the mean negative log-probability of the scored tokens.
    standard_error : float
        perplexity * sqrt(variance of the negative log-probabilities / (tokens - 1)).
    tokens : int
        Tokens scored.
    seconds : float
        Time of reading and scoring the windows; neither loading nor tokenizing.
    windows : int
        Windows scored.
    """

    perplexity: float
    standard_error: float
    tokens: int
    seconds: float
    windows: int


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, every byte of it: line ends stay as they are.

    Raises
    ------
    Error
        If the file cannot be read or is not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Error(
            f"{path}: expected UTF-8 text, found byte 0x{data[error.start]:02x} at offset "
            f"{error.start}; convert the file first"
        ) from None


def perplexity(
    engine: Engine,
    text: str,
    *,
    ctx: int = 512,
    chunks: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> PerplexityResult:
    """Scores a text.

    Parameters
    ----------
    engine : Engine
    text : str
    ctx : int
        Tokens of a window, at least 8 and at most the context of the engine. Of each, those after
        the first ``ctx // 2 + 1`` are scored: 255 of 512.
    chunks : int, optional
        Most windows; None scores all that the text fills.
    progress : callable, optional
        Called with (windows done, windows in all, perplexity so far).

    Raises
    ------
    ValueError
        If `ctx` or `chunks` is out of range, or the text does not fill one window.
    Error
        If the model produces NaN.
    """
    if not MIN_CTX <= ctx <= engine.n_ctx:
        raise ValueError(f"ctx: expected {MIN_CTX} to {engine.n_ctx} tokens, got {ctx}")
    if chunks is not None and chunks < 1:
        raise ValueError(f"chunks: expected at least 1, got {chunks}")
    ids = engine.tokenizer.encode(text, add_special=False, parse_special=False)
    count = len(ids) // ctx
    if count == 0:
        raise ValueError(
            f"the text has {len(ids)} tokens, too few for one window of {ctx}; give a longer text "
            f"or a smaller ctx"
        )
    count = count if chunks is None else min(count, chunks)
    bos = leading_bos(engine.tokenizer)
    began_s = time.perf_counter()
    scores = np.zeros(0)
    for i in range(count):
        window = ids[i * ctx : (i + 1) * ctx]
        if bos is not None:
            window[0] = bos
        scores = np.concatenate([scores, _score(engine, window)])
        if progress is not None:
            progress(i + 1, count, math.exp(-scores.mean()))
    spread = math.sqrt(scores.var() / (len(scores) - 1))
    value = math.exp(-scores.mean())
    return PerplexityResult(
        value, value * spread, len(scores), time.perf_counter() - began_s, windows=count
    )


def leading_bos(tokenizer: Tokenizer) -> int | None:
    """The id that the tokenizer puts before every text, or None."""
    plain = tokenizer.encode("a", add_special=False)
    full = tokenizer.encode("a", add_special=True)
    added = len(full) > len(plain) and full[0] == tokenizer.bos_id
    return tokenizer.bos_id if added else None


def log_probabilities(
    logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Natural log-probability of one token per row of logits, in float64.

    Parameters
    ----------
    logits : float32[m, n_vocab]
    tokens : int64[m]

    Returns
    -------
    float64[m]
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    chosen = wide[np.arange(len(tokens)), tokens]
    total: npt.NDArray[np.float64] = np.exp(wide, out=wide).sum(axis=1)
    return chosen - np.log(total)


def _score(engine: Engine, window: list[int]) -> npt.NDArray[np.float64]:
    """Log-probabilities float64[ctx - 1 - ctx // 2] of the tokens after position ctx // 2."""
    half, last = len(window) // 2, len(window) - 1
    sequence = engine.sequence()
    pieces = []
    try:
        engine.feed(sequence, window[:half], logits="none")
        for start in range(half, last, BLOCK):
            stop = min(start + BLOCK, last)
            logits = engine.feed(sequence, window[start:stop], logits="all")
            pieces.append(log_probabilities(logits, np.array(window[start + 1 : stop + 1])))
    finally:
        sequence.close()
    scores = np.concatenate(pieces)
    if not np.isfinite(scores).all():
        raise Error(f"the model {engine.name!r} produced NaN or infinite logits")
    return scores
