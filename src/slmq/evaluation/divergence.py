"""How far a model's next-token distributions are from those of a reference.

Both models read the same windows (see `slmq.evaluation.windows`) side by side; a block of 64 rows
of logits of each is in memory at a time. What is kept is a few numbers per token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slmq.evaluation.likelihood import log_softmax
from slmq.evaluation.metrics import Metric, exp_of_mean, mean, root_of_mean
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

    F32 = npt.NDArray[np.float32]
    I64 = npt.NDArray[np.int64]
    Rows = npt.NDArray[np.void]  # of dtype ROW

__all__ = ["Comparison", "compare"]

# What is kept of a scored token: the divergence, whether the likeliest token is the same, mean
# squares of the centred logits of A and of their difference, and what A and B give the token that
# the text has.
ROW = np.dtype(
    [
        ("kl", "f8"),
        ("same", "?"),
        ("square_a", "f8"),
        ("square_change", "f8"),
        ("log_a", "f8"),
        ("log_b", "f8"),
    ]
)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. p_a and p_b are the next-token distributions of the two models.

    Attributes
    ----------
    kl_mean : Metric
        Mean over the scored tokens of KL(p_a || p_b) = sum p_a * ln(p_a / p_b), in nats.
    kl_median, kl_p90, kl_p99, kl_max : float
        Quantiles of the same.
    top1_agreement : Metric
        Part of the tokens at which both models have the same likeliest token.
    logit_rms : Metric
        Root mean square, over tokens and vocabulary, of the difference of logits. Each token's
        logits are centred first: a constant added to all of them changes no probability.
    logit_rms_relative : float
        The same over the root mean square of the reference's centred logits.
    token_probability_rms : Metric
        Root mean square of p_b - p_a of the token that the text has.
    perplexity_a, perplexity_b : Metric
        As `slmq.perplexity` has them, over the same tokens.
    perplexity_ratio : Metric
        B's over A's. Its error is that of paired tokens, far below those of the two alone.
    tokens, windows : int
        Scored.
    seconds : float
    """

    kl_mean: Metric
    kl_median: float
    kl_p90: float
    kl_p99: float
    kl_max: float
    top1_agreement: Metric
    logit_rms: Metric
    logit_rms_relative: float
    token_probability_rms: Metric
    perplexity_a: Metric
    perplexity_b: Metric
    perplexity_ratio: Metric
    tokens: int
    windows: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain numbers; the error of `name` is called `name_stderr`."""
        flat: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if isinstance(value, dict):
                flat |= {name: value["value"], f"{name}_stderr": value["standard_error"]}
            else:
                flat[name] = value
        return flat


def compare(
    a: Model | Engine,
    b: Model | Engine,
    text: str | Sequence[int],
    *,
    ctx: int = 512,
    chunks: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Comparison:
    """Hold the next-token distributions of `b` against those of `a`.

    Parameters
    ----------
    a : Model or Engine
        The reference, such as a model before quantization.
    b : Model or Engine
        With the vocabulary of `a`.
    text : str or sequence of int
        Text, or token ids as they are.
    ctx : int
        Tokens of a window; those of its second half are scored, as in `slmq.perplexity`.
    chunks : int, optional
        Most windows; None takes all that the text fills.
    progress : callable, optional
        Called with (windows done, windows in all, mean divergence so far).

    Raises
    ------
    ValueError
        If the models have different vocabularies or are the same object, `ctx` or `chunks` is out
        of range, or the text does not fill one window.
    CheckpointError
        If a model produces NaN.
    """
    if a is b:
        raise ValueError("expected two models, got the same one twice; load it twice")
    with engine_of(a) as first, engine_of(b) as second:
        bos = check_same_vocabulary(first, second)
        ids = token_ids(first.tokenizer, text)
        if isinstance(text, str) and ids != token_ids(second.tokenizer, text):
            raise ValueError(
                f"the tokenizers of {first.name!r} and {second.name!r} tokenize this text "
                f"differently; models can be compared only over the same tokens"
            )
        windows = cut(ids, ctx, chunks, n_ctx=min(first.n_ctx, second.n_ctx), bos=bos)
        began_s = time.perf_counter()
        rows = np.zeros(0, ROW)
        for i, window in enumerate(windows):
            rows = np.concatenate([rows, *_compare_window(first, second, window)])
            if progress is not None:
                progress(i + 1, len(windows), float(rows["kl"].mean()))
    return _summary(rows, len(windows), time.perf_counter() - began_s)


def check_same_vocabulary(a: Engine, b: Engine) -> int | None:
    """The token that begins texts of both, or None.

    Raises
    ------
    ValueError
        Unless the same ids stand for the same bytes in both.
    """
    names = f"{a.name!r} and {b.name!r}"
    if a.n_vocab != b.n_vocab:
        raise ValueError(
            f"expected two models with the same vocabulary; {names} have {a.n_vocab} and "
            f"{b.n_vocab} tokens"
        )
    for token in range(a.n_vocab):
        one, other = a.tokenizer.token_bytes(token), b.tokenizer.token_bytes(token)
        # Rows that pad an embedding have no text in one kind of file and a made-up one in another.
        if one != other and one and other:
            raise ValueError(
                f"expected two models with the same vocabulary; token {token} of {names} is "
                f"{one!r} and {other!r}"
            )
    bos, other_bos = leading_bos(a.tokenizer), leading_bos(b.tokenizer)
    if bos != other_bos:
        raise ValueError(
            f"expected two models whose texts start with the same token; those of {names} start "
            f"with {bos} and {other_bos}"
        )
    return bos


def _compare_window(a: Engine, b: Engine, window: list[int]) -> Iterator[Rows]:
    """The rows of a window, in pieces."""
    blocks_a, blocks_b = scored_blocks(a, window), scored_blocks(b, window)
    for logits_a, logits_b, tokens in _aligned(blocks_a, blocks_b):
        rows = compare_logits(logits_a, logits_b, tokens)
        for name, engine in (("log_a", a), ("log_b", b)):
            require_finite(engine, rows[name])
        yield rows


def _aligned(
    a: Iterator[tuple[F32, I64]], b: Iterator[tuple[F32, I64]]
) -> Iterator[tuple[F32, F32, I64]]:
    """Blocks of the same rows: models of different sizes cut a window in different places."""
    logits_a, tokens = next(a)
    logits_b, _ = next(b)
    while True:
        count = min(len(logits_a), len(logits_b))
        yield logits_a[:count], logits_b[:count], tokens[:count]
        logits_a, logits_b, tokens = logits_a[count:], logits_b[count:], tokens[count:]
        if not len(logits_a):
            logits_a, tokens = next(a, (logits_a, tokens))
        if not len(logits_b):
            logits_b, _ = next(b, (logits_b, tokens))
        if not len(logits_a):
            return


def compare_logits(a: F32, b: F32, tokens: I64) -> Rows:
    """What is kept of a block: `a`, `b` float32[m, n_vocab], `tokens` int64[m] -> ROW[m]."""
    found = np.empty(len(tokens), ROW)
    found["same"] = a.argmax(axis=1) == b.argmax(axis=1)
    for (rows, log_a), (_, log_b) in zip(log_softmax(a), log_softmax(b), strict=True):
        part, at = found[rows], (np.arange(len(log_a)), tokens[rows])
        part["log_a"], part["log_b"] = log_a[at], log_b[at]
        # Logarithms of probabilities are logits but for a constant, which centring takes away.
        change = log_b - log_a
        # Rounding may leave -1e-17 where the two are equal.
        part["kl"] = np.maximum(-(np.exp(log_a) * change).sum(axis=1), 0)
        part["square_change"] = change.var(axis=1)
        part["square_a"] = log_a.var(axis=1)
    return found


def _summary(rows: Rows, windows: int, seconds: float) -> Comparison:
    kl, log_a, log_b = rows["kl"], rows["log_a"], rows["log_b"]
    median, p90, p99 = (float(np.quantile(kl, q)) for q in (0.5, 0.9, 0.99))
    logit_rms = root_of_mean(rows["square_change"])
    spread = float(np.sqrt(rows["square_a"].mean()))
    return Comparison(
        kl_mean=mean(kl),
        kl_median=median,
        kl_p90=p90,
        kl_p99=p99,
        kl_max=float(kl.max()),
        top1_agreement=mean(rows["same"]),
        logit_rms=logit_rms,
        logit_rms_relative=logit_rms.value / spread if spread else 0.0,
        token_probability_rms=root_of_mean((np.exp(log_b) - np.exp(log_a)) ** 2),
        perplexity_a=exp_of_mean(-log_a),
        perplexity_b=exp_of_mean(-log_b),
        perplexity_ratio=exp_of_mean(log_a - log_b),
        tokens=len(rows),
        windows=windows,
        seconds=seconds,
    )
