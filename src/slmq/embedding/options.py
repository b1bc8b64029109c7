"""How an encoder is loaded: every option once, checked before anything is looked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from slmq.engine.options import PRECISION, activations_option, memory_option, threads_option
from slmq.settings import Activations, Memory, WeightFormat, check_options, one_of, option

__all__ = ["EncoderArgs", "EncoderOptions"]


class EncoderArgs(TypedDict, total=False):
    """The keyword arguments of `EncoderOptions`, for type checkers."""

    format: WeightFormat | None
    n_threads: int | None
    memory: Memory | None
    activations: Activations


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """How an encoder is loaded and run.

    Parameters
    ----------
    format : {"int4", "int8", "f16", "f32"}, optional
        What weights become. None makes int8 of floats, and keeps what is quantized already.
    n_threads : int, optional
        Threads; None takes the physical cores that this process may use.
    memory : {"mmap", "huge", "small"}, optional
        Where weights are kept; as for `slmq.load`.
    activations : {"mixed", "exact"}
        What inputs of integer weights are rounded to; as for `slmq.load`.

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
    activations: Activations = activations_option()

    def __post_init__(self) -> None:
        check_options(self)
