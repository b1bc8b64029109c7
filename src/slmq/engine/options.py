"""How a model is loaded: every option once, checked before anything is looked for or downloaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, TypedDict

from slmq.settings import (
    Activations,
    KvDtype,
    Memory,
    WeightFormat,
    byte_count,
    check_options,
    integer,
    one_of,
    option,
    shown,
)

__all__ = [
    "MAX_CONTEXT",
    "MAX_THREADS",
    "PRECISION",
    "LoadArgs",
    "LoadOptions",
    "memory_option",
    "threads_option",
]

MAX_CONTEXT = 1 << 24  # positions must be exact in float32
MAX_THREADS = 1024  # as the native code
PRECISION = "precision"  # the group of what changes the numbers that a model computes


def threads_option() -> Any:
    """The field `n_threads` of whatever is loaded."""
    return option(
        None,
        "Number of threads. Default: one per physical core that the process may use.",
        integer(f"an int in 1..{MAX_THREADS}", low=1, high=MAX_THREADS, optional=True),
        flag="--threads",
    )


def memory_option() -> Any:
    """The field `memory` of whatever is loaded."""
    return option(
        None,
        "Where to keep the weights: mmap (map the file; the default for packed folders), huge "
        "(2 MiB pages; the default otherwise) or small (ordinary pages).",
        one_of(Memory, optional=True),
    )


def _model_name(name: str, value: object) -> str | os.PathLike[str] | None:
    if value is None or isinstance(value, (str, os.PathLike)):
        return value
    raise TypeError(f"{name}: expected the name or path of a model, got {shown(value)}")


class LoadArgs(TypedDict, total=False):
    """The keyword arguments of `LoadOptions`, for type checkers."""

    format: WeightFormat | None
    n_ctx: int | None
    n_threads: int | None
    kv_dtype: KvDtype
    memory: Memory | None
    activations: Activations
    kv_bytes: int | str | None
    draft: str | os.PathLike[str] | None


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a model is loaded and run.

    Parameters
    ----------
    format : {"int4", "int8", "f16", "f32"}, optional
        What weights become; None keeps them as they are stored. Also a stored format: "q4g32s",
        "q4g32a", "q8g32s".
    n_ctx : int, optional
        Most tokens of prompt and answer together; None takes the length the model was made for.
    n_threads : int, optional
        Threads; None takes the physical cores that this process may use.
    kv_dtype : {"f16", "f32", "int8", "int4"}
        Format of the cache of keys and values.
    memory : {"mmap", "huge", "small"}, optional
        Where weights are kept. "mmap" maps a folder that `slmq convert` wrote: ready at once,
        shared between processes, and killed by the system (SIGBUS) if another process cuts the
        file short meanwhile. "huge" and "small" copy or pack them into 2 MiB or ordinary pages; a
        file that is cut short while it is loaded is a CheckpointError then. None maps what can be
        mapped, and else is "huge".
    activations : {"mixed", "exact"}
        What inputs of integer weights are rounded to, per token and group of 32. "mixed": 8 bits,
        and 16 where a group stands out. "exact": 16 everywhere, for twice the products.
    kv_bytes : int or str, optional
        Most bytes that the cache of keys and values may take, such as "512MB" or "2GiB": what
        lives, what is kept for later prompts, and that of the draft model. Requests wait for room;
        one that could never fit is a CacheFullError. None takes four whole contexts, at least 2
        GiB, and at most half of the memory that is free.
    draft : str or path, optional
        A small model with the same tokenizer, found like the model itself and loaded with the same
        options. It guesses tokens ahead; the model checks them in one run. Answers stay the same.

    Raises
    ------
    TypeError
        If a value has the wrong type.
    ValueError
        If a value is out of range.
    """

    format: WeightFormat | None = option(
        None,
        "Weight format: int4, int8, f16 or f32. Default: as stored.",
        one_of(WeightFormat, optional=True),
        metavar="FORMAT",
        formerly="quant",
        group=PRECISION,
    )
    n_ctx: int | None = option(
        None,
        "Context size: the maximum number of tokens of prompt and answer together. Default: the "
        "model's own.",
        integer(f"an int in 1..{MAX_CONTEXT}", low=1, high=MAX_CONTEXT, optional=True),
    )
    n_threads: int | None = threads_option()
    kv_dtype: KvDtype = option(
        "f16",
        "Type of the cached keys and values: f16, f32, int8 or int4.",
        one_of(KvDtype),
        group=PRECISION,
    )
    memory: Memory | None = memory_option()
    activations: Activations = option(
        "mixed",
        "Precision of the inputs of integer weights: mixed (8 bits, 16 where it matters) or exact "
        "(16 bits everywhere).",
        one_of(Activations),
        group=PRECISION,
    )
    # The command line gives a text, so that comes first.
    kv_bytes: str | int | None = option(
        None,
        "Maximum size of the cache of keys and values, such as 512MB or 2GiB. Default: enough for "
        "four whole contexts, within half of the free memory.",
        byte_count('a number of bytes, such as 536870912, "512MB" or "2GiB"', optional=True),
        metavar="SIZE",
    )
    draft: str | os.PathLike[str] | None = option(
        None,
        "Small model with the same tokenizer (name, folder or .gguf file) that guesses tokens "
        "ahead; answers stay the same.",
        _model_name,
        metavar="MODEL",
    )

    def __post_init__(self) -> None:
        check_options(self)
