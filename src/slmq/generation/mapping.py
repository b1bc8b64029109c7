"""Many prompts, or many samples of one: what `Model.map` and `Model.samples` do."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from numbers import Integral
from operator import length_hint
from typing import TYPE_CHECKING, Any, Literal

from slmq.generation.bars import Report, reported
from slmq.generation.prompts import Prompt
from slmq.generation.results import GenerationResult
from slmq.generation.sampling import SamplingParams
from slmq.generation.window import Outcome

if TYPE_CHECKING:
    from slmq.generation.stream import TokenStream

__all__ = ["Errors", "map_prompts", "sample_prompt"]

Errors = Literal["raise", "return"]
Submit = Callable[..., "TokenStream"]
SubmitAll = Callable[..., Generator[tuple[int, Outcome], None, None]]
SEEDS = 2**64


def map_prompts(
    submit: Submit,
    submit_all: SubmitAll,
    prompts: Iterable[Any],
    params: Mapping[str, Any],
    *,
    ordered: bool,
    progress: bool | Report,
    errors: str,
) -> Iterator[Any]:
    """See `Model.map`; what is wrong with the arguments is told here, not at the first result."""
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        raise TypeError(
            f"prompts: expected an iterable of prompts, got {type(prompts).__name__}; "
            "generate answers a single one"
        )
    if errors not in ("raise", "return"):
        raise ValueError(f"errors: expected 'raise' or 'return', got {errors!r}")
    SamplingParams.from_kwargs(params)
    # Without a length this is 0, which no progress can be told against.
    total = length_hint(prompts) or None
    starts = (partial(submit, prompt, params, batch=True, whole=True) for prompt in prompts)
    found = submit_all(starts, ordered=ordered)
    return _results(found, total, ordered=ordered, progress=progress, raises=errors == "raise")


def sample_prompt(
    submit: Submit, submit_all: SubmitAll, prompt: Prompt, n: object, params: Mapping[str, Any]
) -> list[GenerationResult]:
    """See `Model.samples`."""
    if isinstance(n, bool) or not isinstance(n, Integral):
        raise TypeError(f"n: expected an int >= 1, got {type(n).__name__} {n!r}")
    if n < 1:
        raise ValueError(f"n: expected an int >= 1, got {n}")
    seeds = sample_seeds(SamplingParams.from_kwargs(params).seed)
    starts = (
        partial(submit, prompt, {**params, "seed": seed}, whole=True)
        for seed, _ in zip(seeds, range(int(n)), strict=False)
    )
    found = submit_all(starts, ordered=True)
    return list(_results(found, int(n), ordered=True, progress=False, raises=True))


def sample_seeds(first: int | None) -> Iterator[int]:
    """The seeds of the samples of one prompt: `first`, or a fresh one, and those after it."""
    seed = int.from_bytes(os.urandom(8), "little") if first is None else first
    while True:
        yield seed
        seed = (seed + 1) % SEEDS


def _results(
    found: Generator[tuple[int, Outcome], None, None],
    total: int | None,
    *,
    ordered: bool,
    progress: bool | Report,
    raises: bool,
) -> Iterator[Any]:
    with closing(found), reported(progress, "answers") as report:
        for done, (index, outcome) in enumerate(found, 1):
            report(done, total)
            if raises and isinstance(outcome, Exception):
                raise outcome
            yield outcome if ordered else (index, outcome)
