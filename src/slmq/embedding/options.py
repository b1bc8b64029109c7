"""How an encoder is loaded: every option once, checked before anything is looked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from slmq.engine.options import PRECISION, memory_option, threads_option
from slmq.settings import (
    EncoderActivations,
    Memory,
    WeightFormat,
    check_options,
    one_of,
    option,
)

__all__ = ["EncoderArgs", "EncoderOptions"]


class EncoderArgs(TypedDict, total=False):
    """The keyword arguments of `EncoderOptions`, for type checkers."""

    format: WeightFormat | None
    n_threads: int | None
    memory: Memory | None
    activations: EncoderActivations | None


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """How an encoder is loaded and run.

    Parameters
    ----------
    format : {"int4", "int8", "f16", "f32"}, optional
        What weights become. None makes int8 of floats, and keeps what is quantized already. The
        int8 of encoders has one scale a row ("q8rs"); "q8g32s" has one for 32 columns.
    n_threads : int, optional
        Threads; None takes the physical cores that this process may use.
    memory : {"mmap", "huge", "small"}, optional
        Where weights are kept; as for `slmq.load`.
    activations : {"fast", "mixed", "exact"}, optional
        What inputs of integer weights are rounded to, per token and group of 32. "fast": 8 bits,
        and with one scale a row 16 where a group stands out far.
        "mixed": 16 where a group stands out. "exact": 16 everywhere. None is "fast" for encoders,
        and "mixed" for decoders that embed, where more groups stand out.

    Raises
    ------
    TypeError
        If a value has the wrong type.
    ValueError
        If a value is out of range.
    """

    format: WeightFormat | None = option(
        None,
        "Weight format: int4, int8, f16 or f32. Default: int8 for float weights, else as stored.",
        one_of(WeightFormat, optional=True),
        metavar="FORMAT",
        group=PRECISION,
    )
    n_threads: int | None = threads_option()
    memory: Memory | None = memory_option()
    activations: EncoderActivations | None = option(
        None,
        "Precision of the inputs of integer weights: fast (8 bits; the default of encoders), mixed "
        "(16 where it matters; that of decoders that embed) or exact (16 bits everywhere).",
        one_of(EncoderActivations, optional=True),
        group=PRECISION,
    )

    def __post_init__(self) -> None:
        check_options(self)
