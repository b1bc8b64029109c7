"""From sampling parameters to a sampler; the work itself is in `_sampling`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import slmq._native as _native
from slmq.generation._sampling import Sampler, logsumexp, top_ids
from slmq.generation.params import DRAW, SamplingArgs, SamplingParams
from slmq.generation.results import TokenLogprob
from slmq.settings import names_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SamplingArgs", "SamplingParams", "make_sampler", "token_logprob"]


def make_sampler(
    params: SamplingParams,
    n_vocab: int,
    *,
    softmax: Callable[[Any, float], NDArray[np.float32]] | None = None,
) -> Sampler:
    """Sampler for one answer.

    Parameters
    ----------
    params : SamplingParams
        What to do; without a seed a fresh one is taken (see ``Sampler.seed``).
    n_vocab : int
        Length of the logits.
    softmax : callable, optional
        ``softmax(x: float32[n], scale) -> float32[n]``; the native one unless given.

    Raises
    ------
    ValueError
        If a token id in `params` is outside the vocabulary.
    """
    params.check_vocabulary(n_vocab)
    seed = params.seed
    if seed is None:
        seed = int.from_bytes(os.urandom(8), "little")
    draw = {name: getattr(params, name) for name in names_of(SamplingParams, DRAW)}
    # Any integer is a limit; the sampler's are of the machine.
    draw["top_k"] = min(params.top_k, n_vocab)
    return Sampler(
        n_vocab, _native.softmax_address() if softmax is None else softmax, seed=seed, **draw
    )


def token_logprob(logits: NDArray[np.float32], token: int, n_top: int) -> TokenLogprob:
    """Log-probability of `token`, and of the `n_top` most likely tokens, under raw logits.

    Parameters
    ----------
    logits : numpy.ndarray
        float32[n_vocab], as the model made them.
    token : int
        The chosen token.
    n_top : int
        Number of alternatives; fewer are reported if fewer tokens have a finite logit.
    """
    total = logsumexp(logits)
    top = tuple((other, float(logits[other]) - total) for other in top_ids(logits, n_top))
    return TokenLogprob(token, float(logits[token]) - total, top)
