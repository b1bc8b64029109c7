"""What this machine could do at best: read bandwidth and integer peak."""

from __future__ import annotations

from dataclasses import dataclass

import slmq._native as _native

PROBE_BYTES = 512 << 20  # beyond the last-level cache of ordinary machines
PROBE_S = 0.3
MOST = 1.05  # of a limit; what is left for the spread of two measurements
REFUSED = "over 1"
WHY_REFUSED = (
    f"{REFUSED}: more than {MOST} of a limit is no fraction of it. What was read came from a "
    "cache, or the machine was slower while its limits were measured: take a larger model, or "
    "repeat on a quiet machine"
)


@dataclass(frozen=True)
class Limits:
    """What the machine can do: the best of the probes of a run.

    Attributes
    ----------
    threads : int
    read_gb_per_s : float
        Plain reading of memory, in 1e9 bytes per second.
    integer_peak_gmac_per_s : float
        int8 dot products from registers, in 1e9 multiply-accumulates per second.
    """

    threads: int
    read_gb_per_s: float
    integer_peak_gmac_per_s: float


def told(fraction: float, digits: int = 2) -> str:
    """A fraction of a limit for people; one that cannot be is refused, see `WHY_REFUSED`."""
    return f"{fraction:.{digits}f}" if fraction <= MOST else REFUSED


def probe(threads: int, isa: str) -> Limits:
    """One look at what the machine can do now."""
    return Limits(
        threads,
        _native.memory_read_gb_per_s(threads, PROBE_BYTES, PROBE_S),
        _native.integer_peak_gmac_per_s(threads, isa, PROBE_S),
    )
