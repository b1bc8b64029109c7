"""What a caller may ask of sampling, and its validation; the work itself is in `_sampling`."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypedDict

import slmq._native as _native
from slmq.generation._sampling import Sampler, logsumexp, top_ids
from slmq.generation.results import TokenLogprob

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SamplingArgs", "SamplingParams", "make_sampler", "token_logprob"]

MAX_STOPS = 64
LARGEST_FLOAT32 = 3.4028234663852886e38


class SamplingArgs(TypedDict, total=False):
    """The keyword arguments of `SamplingParams`, for type checkers."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | int | Iterable[str | int] | None
    ignore_eos: bool
    logprobs: int | None


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of an answer are chosen and when it ends.

    The steps run in the order of transformers: logit bias, penalties, temperature, top-k, top-p,
    min-p, draw. The default is greedy, as in mlx-lm: the same prompt gives the same answer.

    Parameters
    ----------
    max_tokens : int, optional
        Most tokens to generate; None goes on until an end token or until the context is full.
        0 only reads the prompt.
    temperature : float
        Divides the logits. 0 (default) is greedy: the greatest logit, the lowest id among equals.
    top_k : int
        Keep the k most likely tokens; 0 (default) keeps all.
    top_p : float
        Keep the smallest set of most likely tokens that holds this share of the probability left
        by top-k, in (0, 1]; 1 (default) keeps all.
    min_p : float
        Keep tokens at least this fraction as likely as the most likely one, in [0, 1].
    repetition_penalty : float
        Divides positive and multiplies negative logits of tokens in prompt or answer, > 0;
        1 (default) changes nothing.
    presence_penalty, frequency_penalty : float
        Subtracted from the logits of tokens in the answer, once, and once per occurrence;
        in [-2, 2].
    logit_bias : mapping of int to float, optional
        Token id to a value that is added to its logit; ``-inf`` bans the token.
    seed : int, optional
        0 to 2**64 - 1. The same seed gives the same text. None takes a fresh one from the
        operating system; the result tells which.
    stop : str, int, or iterable of them, optional
        Strings at which the answer ends (they are cut from it), and ids of tokens that end it
        like the end token of the model. At most 64.
    ignore_eos : bool
        Go on after end tokens of the model (stop strings and stop tokens still end the answer).
    logprobs : int, optional
        How many of the most likely tokens to report beside every chosen one (0: the chosen one
        only). Values are natural logarithms of the model's own probabilities, before bias,
        penalties, temperature and filters. None (default) reports nothing.

    Raises
    ------
    TypeError
        If a value has the wrong type.
    ValueError
        If a value is out of range.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: str | int | Iterable[str | int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        put = self._put
        put("max_tokens", _optional_count("max_tokens", self.max_tokens))
        put("temperature", _number("temperature", self.temperature, "a finite number >= 0", low=0))
        put("top_k", _count("top_k", self.top_k))
        put("top_p", _number("top_p", self.top_p, "0 < top_p <= 1", above=0, high=1))
        put("min_p", _number("min_p", self.min_p, "0 <= min_p <= 1", low=0, high=1))
        for name in ("presence_penalty", "frequency_penalty"):
            put(name, _number(name, getattr(self, name), "a number from -2 to 2", low=-2, high=2))
        put(
            "repetition_penalty",
            _number("repetition_penalty", self.repetition_penalty, "a finite number > 0", above=0),
        )
        put("logit_bias", _biases(self.logit_bias))
        put("seed", _seed(self.seed))
        put("stop", _stops(self.stop))
        if not isinstance(self.ignore_eos, bool):
            raise TypeError(f"ignore_eos: expected a bool, got {_shown(self.ignore_eos)}")
        put("logprobs", _optional_count("logprobs", self.logprobs))

    def _put(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen for everybody else

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> SamplingParams:
        """Build from keyword arguments; an unknown one is named beside its nearest neighbour."""
        known = [field.name for field in fields(cls)]
        for name in kwargs:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(
                    f"unknown parameter {name!r}{hint} (expected one of {', '.join(known)})"
                )
        return cls(**kwargs)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Stop strings."""
        return tuple(stop for stop in self._stops if isinstance(stop, str))

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Ids of the stop tokens."""
        return frozenset(stop for stop in self._stops if isinstance(stop, int))

    @property
    def _stops(self) -> tuple[str | int, ...]:
        assert isinstance(self.stop, tuple)  # __post_init__ made it one
        return self.stop

    def check_vocabulary(self, n_vocab: int) -> None:
        """Raise ValueError if a token id or a count lies outside a vocabulary of this size."""
        for name, ids in (("logit_bias", self.logit_bias or ()), ("stop", self.stop_tokens)):
            for token in ids:
                if token >= n_vocab:
                    raise ValueError(
                        f"{name}: expected token ids from 0 to {n_vocab - 1}, got {token}"
                    )
        if self.logprobs is not None and self.logprobs > n_vocab:
            raise ValueError(f"logprobs: expected at most {n_vocab}, got {self.logprobs}")


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
    return Sampler(
        n_vocab,
        _native.softmax_address() if softmax is None else softmax,
        temperature=params.temperature,
        top_k=min(params.top_k, n_vocab),
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        seed=seed,
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


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}"


def _number(
    name: str,
    value: object,
    expected: str,
    *,
    low: float = -LARGEST_FLOAT32,
    high: float = LARGEST_FLOAT32,
    above: float = -math.inf,
) -> float:
    """`value` as a float if low <= value <= high and value > above, which no NaN passes."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {expected}, got {_shown(value)}")
    number = float(value)
    if not (low <= number <= high and number > above):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return number


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an int >= 0, got {_shown(value)}")
    count = int(value)
    if count < 0:
        raise ValueError(f"{name}: expected an int >= 0, got {count}")
    return count


def _optional_count(name: str, value: object) -> int | None:
    return None if value is None else _count(name, value)


def _seed(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"seed: expected an int or None, got {_shown(value)}")
    seed = int(value)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected 0 to 2**64 - 1, got {seed}")
    return seed


def _biases(value: object) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"logit_bias: expected a mapping of int to float, got {_shown(value)}")
    biases = {}
    for key, bias in value.items():
        token = _count("logit_bias key", key)
        if isinstance(bias, Real) and float(bias) == -math.inf:
            biases[token] = -math.inf
        else:
            biases[token] = _number(f"logit_bias[{token}]", bias, "a finite number or -inf")
    return biases


def _stops(value: object) -> tuple[str | int, ...]:
    if value is None:
        return ()
    single = isinstance(value, (str, Integral))
    if not single and (isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable)):
        raise TypeError(f"stop: expected a str, a token id, or a list of them, got {_shown(value)}")
    items: list[object] = [value] if single or not isinstance(value, Iterable) else list(value)
    if len(items) > MAX_STOPS:
        raise ValueError(f"stop: expected at most {MAX_STOPS} entries, got {len(items)}")
    stops: list[str | int] = []
    for item in items:
        if not isinstance(item, str):
            stops.append(_count("stop token", item))
        elif item:
            stops.append(item)
        else:
            raise ValueError("stop: expected non-empty strings, got ''")
    return tuple(stops)
