"""Perplexity of a text by the usual protocol: see `slmq.evaluation.windows`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slmq.evaluation.likelihood import log_probabilities
from slmq.evaluation.metrics import exp_of_mean
from slmq.evaluation.windows import (
    cut,
    engine_of,
    leading_bos,
    require_finite,
    scored_blocks,
    token_ids,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from slmq.engine.engine import Engine
    from slmq.generation.model import Model

__all__ = ["PerplexityResult", "perplexity"]


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


def perplexity(
    model: Model | Engine,
    text: str | Sequence[int],
    *,
    ctx: int = 512,
    chunks: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> PerplexityResult:
    """Score a text.

    Parameters
    ----------
    model : Model or Engine
    text : str or sequence of int
        Text, or token ids to be scored as they are.
    ctx : int
        Tokens of a window, at least 8 and at most the context of the model. Of each, those after
        the first ``ctx // 2 + 1`` are scored: 255 of 512.
    chunks : int, optional
        Most windows; None scores all that the text fills.
    progress : callable, optional
        Called with (windows done, windows in all, perplexity so far).

    Raises
    ------
    ValueError
        If `ctx` or `chunks` is out of range, or the text does not fill one window.
    CheckpointError
        If the model produces NaN.
    """
    with engine_of(model) as engine:
        tokenizer = engine.tokenizer
        windows = cut(
            token_ids(tokenizer, text), ctx, chunks, n_ctx=engine.n_ctx, bos=leading_bos(tokenizer)
        )
        began_s = time.perf_counter()
        losses = np.zeros(0)
        for i, window in enumerate(windows):
            losses = np.concatenate([losses, -_score(engine, window)])
            if progress is not None:
                progress(i + 1, len(windows), math.exp(losses.mean()))
    found = exp_of_mean(losses)
    assert found.standard_error is not None  # a window has three scored tokens or more
    return PerplexityResult(
        found.value,
        found.standard_error,
        len(losses),
        time.perf_counter() - began_s,
        windows=len(windows),
    )


def _score(engine: Engine, window: list[int]) -> npt.NDArray[np.float64]:
    """Log-probabilities float64[ctx - 1 - ctx // 2] of the tokens after position ctx // 2."""
    blocks = scored_blocks(engine, window)
    scores = np.concatenate([log_probabilities(logits, tokens) for logits, tokens in blocks])
    require_finite(engine, scores)
    return scores
