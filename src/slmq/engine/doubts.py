"""Options that are possible, but hardly what was meant: said once, as warnings of the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import slmq._native as _native

if TYPE_CHECKING:
    from slmq.checkpoint import Checkpoint
    from slmq.engine.engine import ModelInfo
    from slmq.engine.options import LoadOptions

__all__ = ["FLOAT_BITS", "doubt_options", "stored_bits"]

log = logging.getLogger("slmq")

FLOAT_BITS = 15.0  # per weight; what has more was not rounded to integers
LARGER = 1.1  # formats differ by a few percent in what they spend on scales


def stored_bits(checkpoint: Checkpoint, parameters: int) -> float:
    """Bits per weight of a checkpoint, as its files hold them."""
    return 8 * sum(tensor.nbytes for tensor in checkpoint.tensors.values()) / max(parameters, 1)


def doubt_options(checkpoint: Checkpoint, options: LoadOptions, info: ModelInfo) -> None:
    """Warn of a context, threads or a format that cost something and bring nothing."""
    if options.n_ctx is not None and options.n_ctx > info.n_ctx_train:
        log.warning(
            "n_ctx=%d: the model was made for %d tokens; beyond them its answers get worse",
            options.n_ctx,
            info.n_ctx_train,
        )
    cores = _native.resolve_threads(None)["physical_cores"]
    if options.n_threads is not None and options.n_threads > cores:
        log.warning(
            "n_threads=%d: this machine has %d physical cores; more threads are slower",
            options.n_threads,
            cores,
        )
    bits = stored_bits(checkpoint, info.parameters)
    if options.format is None or bits > FLOAT_BITS:
        return
    made = 8 * sum(info.formats.values()) / max(info.parameters, 1)
    if made > LARGER * bits:
        log.warning(
            "format=%r: the weights were rounded to %.1f bits already; %.1f bits make them larger "
            "and no more accurate. Without format they run as they are stored",
            options.format,
            bits,
            made,
        )
