"""Log-probabilities of answers: contexts that begin alike are read once, answers run together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slmq.engine.runs import cut_runs
from slmq.evaluation.windows import require_finite

if TYPE_CHECKING:
    import numpy.typing as npt

    from slmq.engine.engine import Engine
    from slmq.engine.sequence import TokenSequence

    F32 = npt.NDArray[np.float32]
    F64 = npt.NDArray[np.float64]

__all__ = ["Likelihood", "Request", "log_probabilities", "log_softmax", "score", "shared_prefix"]

BLOCK_VALUES = 1 << 19  # logits widened to float64 at a time: 4 MB


@dataclass(frozen=True)
class Request:
    """Token ids of a context, at least one, and of the answers that may follow, each of one or
    more tokens."""

    context: list[int]
    options: list[list[int]]


@dataclass(frozen=True)
class Likelihood:
    """An answer after its context.

    Attributes
    ----------
    log_probability : float
        Natural logarithm, the sum over the tokens.
    tokens : int
    greedy : bool
        Whether each token is the likeliest one at its place.
    """

    log_probability: float
    tokens: int
    greedy: bool


def log_softmax(logits: F32) -> Iterator[tuple[slice, F64]]:
    """float64[rows, n_vocab] of a few rows of logits float32[m, n_vocab] at a time."""
    step = max(1, BLOCK_VALUES // logits.shape[1])
    for start in range(0, len(logits), step):
        rows = slice(start, min(start + step, len(logits)))
        wide = logits[rows].astype(np.float64)
        wide -= wide.max(axis=1, keepdims=True)
        wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
        yield rows, wide


def log_probabilities(logits: F32, tokens: npt.NDArray[np.int64]) -> F64:
    """Natural log-probability of one token per row of logits, in float64.

    Parameters
    ----------
    logits : float32[m, n_vocab]
    tokens : int64[m]

    Returns
    -------
    float64[m]
    """
    found = np.empty(len(tokens))
    for rows, logs in log_softmax(logits):
        found[rows] = logs[np.arange(len(logs)), tokens[rows]]
    return found


def shared_prefix(lists: Sequence[list[int]]) -> list[int]:
    """What all lists begin with."""
    if not lists:
        return []
    # What the first and the last in order share, those between share too.
    low, high = min(lists), max(lists)
    pairs = enumerate(zip(low, high, strict=False))
    return low[: next((i for i, (x, y) in pairs if x != y), len(low))]


def score(engine: Engine, requests: Sequence[Request]) -> Iterator[list[Likelihood]]:
    """The likelihood of every option of every request, in order, as they are found.

    What all contexts begin with is read once and shared; the rest runs in batches. Numbers do not
    depend on either.

    Raises
    ------
    ContextOverflowError
        If a context with an option does not fit.
    CheckpointError
        If the model produces NaN.
    """
    shared = shared_prefix([request.context[:-1] for request in requests])
    base = engine.sequence()
    try:
        if shared:
            engine.feed(base, shared, logits="none")
        for group in _groups(requests, len(shared), engine.chunk):
            yield from _score_group(engine, base, len(shared), group)
    finally:
        base.close()


@dataclass(frozen=True)
class _Part:
    """Tokens for a sequence, and the tokens that are looked up in the logits of its last rows."""

    sequence: TokenSequence
    tokens: list[int]
    targets: list[list[int]]


def _groups(requests: Sequence[Request], shared: int, chunk: int) -> Iterator[Sequence[Request]]:
    """Requests whose contexts fit into one run; alone if one is longer."""
    begin = rows = 0
    for i, request in enumerate(requests):
        # The last token of an answer is only looked up.
        alone = len(request.options) == 1
        count = len(request.context) - shared + (len(request.options[0]) - 1 if alone else 0)
        if i > begin and rows + count > chunk:
            yield requests[begin:i]
            begin, rows = i, 0
        rows += count
    if begin < len(requests):
        yield requests[begin:]


def _score_group(
    engine: Engine, base: TokenSequence, shared: int, group: Sequence[Request]
) -> list[list[Likelihood]]:
    """First the contexts, with the first token of each option; then what the options go on with.

    A single option runs with its context.
    """
    parts: list[_Part] = []
    try:
        for request in group:
            tokens, targets = request.context[shared:], [[o[0] for o in request.options]]
            if len(request.options) == 1:
                tokens = tokens + request.options[0][:-1]
                targets += [[token] for token in request.options[0][1:]]
            parts.append(_Part(base.fork(), tokens, targets))
        firsts = _look_up(engine, parts)
        rests: list[_Part] = []
        for request, part in zip(group, parts, strict=True):
            if len(request.options) > 1:
                rests += [
                    _Part(part.sequence.fork(), option[:-1], [[token] for token in option[1:]])
                    for option in request.options
                    if len(option) > 1
                ]
        parts += rests
        lasts = iter(_look_up(engine, rests))
        return [
            _likelihoods(request, first, lasts)
            for request, first in zip(group, firsts, strict=True)
        ]
    finally:
        for part in parts:
            part.sequence.close()


Found = list[tuple[list[float], int]]  # per row: log-probabilities of the targets, likeliest token


def _likelihoods(request: Request, first: Found, lasts: Iterator[Found]) -> list[Likelihood]:
    found = []
    for i, option in enumerate(request.options):
        logs, likeliest = [first[0][0][i]], [first[0][1]]
        if len(option) > 1:
            rest = first[1:] if len(request.options) == 1 else next(lasts)
            logs += [values[0] for values, _ in rest]
            likeliest += [token for _, token in rest]
        found.append(Likelihood(float(np.sum(logs)), len(option), likeliest == option))
    return found


def _look_up(engine: Engine, parts: Sequence[_Part]) -> list[Found]:
    """Feeds the parts in as few runs as they fit, and looks their targets up."""
    rows: Found = []
    wanted = [targets for part in parts for targets in part.targets]
    fed = [(part.sequence, part.tokens, len(part.targets)) for part in parts]
    for run in cut_runs(fed, engine.chunk):
        for logits in engine.run(run) or ():
            likeliest = logits.argmax(axis=1).tolist()
            for block, logs in log_softmax(logits):
                for values, token in zip(logs, likeliest[block], strict=True):
                    rows.append((values[wanted[len(rows)]].tolist(), token))
    for values, _ in rows:
        require_finite(engine, values)
    each = iter(rows)
    return [[next(each) for _ in part.targets] for part in parts]
