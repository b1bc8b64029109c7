"""What a profile found: steps, and the rows of its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slmq.speed.limits import Limits, told

__all__ = [
    "OUTSIDE",
    "PRODUCTS",
    "Phase",
    "Profile",
    "Row",
    "StepRow",
    "duration",
    "group",
    "make_row",
    "verdict",
]

OUTSIDE = "outside steps"
# int8 products for each weight and row. A float takes as much of a register as four bytes.
# The groups that a8o16g32 keeps in 16 bits are few: not counted.
PRODUCTS = {"a8o16g32": 1, "a8g32": 1, "a16g32": 2, "float": 4}


@dataclass(frozen=True)
class StepRow:
    """One step of the plan, or the sum of several.

    Attributes
    ----------
    layer : str
        "layer 0", ..., "embedding" before and "head" after them; "" in a sum over layers.
    op : str
        "linear", "attention", ...; "" in a sum over ops.
    time_us : float
        Median over the runs; a sum of medians for a sum.
    weight_bytes, kv_bytes : int
        Weights, and cached keys and values, that had to be read at least once a run.
    macs : int
        Multiply-accumulates: with weights, and of attention with keys and values.
    products : int
        int8 products that the integer weights took: one or two for each multiply-accumulate,
        by the width of activations. 0 where arithmetic is in float32.
    """

    layer: str
    op: str
    time_us: float
    weight_bytes: int
    kv_bytes: int
    macs: int
    products: int


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes
    ----------
    name : str
    time_us : float
    share : float
        Of the phase's time.
    weight_bytes, kv_bytes, macs : int
        As in `StepRow`.
    gb_per_s : float
        1e9 bytes of weights and cache per second.
    read_fraction : float
        `gb_per_s` over the machine's read bandwidth.
    gmac_per_s : float
        1e9 multiply-accumulates per second.
    integer_fraction : float
        Those with weights over the machine's int8 peak; with 16-bit activations, which take two
        products for each, 0.5 is full use. 0 for attention, which is float32.
    """

    name: str
    time_us: float
    share: float
    weight_bytes: int
    kv_bytes: int
    macs: int
    gb_per_s: float
    read_fraction: float
    gmac_per_s: float
    integer_fraction: float


@dataclass(frozen=True)
class Phase:
    """Decode of one token, or the reading of a prompt.

    Attributes
    ----------
    name : str
        "decode" or "prefill".
    tokens, context : int
        Tokens fed, and tokens that were in the cache before.
    runs : int
        Native runs that fed them.
    time_us : float
        All steps and what lies outside them, with a clock at every step.
    fastest_us, slowest_us : float
        Of single runs with clocks: far apart where other processes were at work.
    plain_us : float
        The same without clocks: median of runs in turn with the timed ones.
    ops, layers : list of Row
        The same time, cut in two ways.
    total : Row
    steps : list of StepRow
        As recorded; the last is what lies outside: Python, handing out work, copying logits.
    bound : str
        "memory", "integer arithmetic", "float arithmetic", "attention" or "overhead".
    sentence : str
        The same in words, with the fractions.
    """

    name: str
    tokens: int
    context: int
    runs: int
    time_us: float
    fastest_us: float
    slowest_us: float
    plain_us: float
    ops: list[Row]
    layers: list[Row]
    total: Row
    steps: list[StepRow]
    bound: str
    sentence: str


@dataclass(frozen=True)
class Profile:
    """All that a profile found; `as_json` is what `slmq profile --json` prints."""

    model: str
    format: str
    activations: str
    cache: str
    cpu: str
    isa: str
    threads: int
    repeat: int
    limits: Limits
    phases: list[Phase]
    sentence: str

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return asdict(self)


def duration(microseconds: float) -> str:
    """A time for people."""
    for unit, scale in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= 10 * scale:
            return f"{microseconds / scale:,.1f} {unit}"
    return f"{microseconds:,.0f} µs"


def group(
    steps: Sequence[StepRow], key: Callable[[StepRow], str], time_us: float, limits: Limits
) -> list[Row]:
    """Rows of steps that share a key, in the order of their first steps."""
    parts: dict[str, list[StepRow]] = {}
    for step in steps:
        parts.setdefault(key(step), []).append(step)
    return [make_row(name, part, time_us, limits) for name, part in parts.items()]


def make_row(name: str, steps: Sequence[StepRow], time_us: float, limits: Limits) -> Row:
    """One line for the sum of some steps of a phase that took `time_us`."""
    spent_us = sum(step.time_us for step in steps)
    weight_bytes = sum(step.weight_bytes for step in steps)
    kv_bytes = sum(step.kv_bytes for step in steps)
    macs = sum(step.macs for step in steps)
    with_weights = sum(step.macs for step in steps if step.op != "attention")
    spent_ns = max(spent_us, 1e-9) * 1e3
    gb_per_s = (weight_bytes + kv_bytes) / spent_ns
    return Row(
        name=name,
        time_us=spent_us,
        share=spent_us / time_us,
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
        macs=macs,
        gb_per_s=gb_per_s,
        read_fraction=gb_per_s / limits.read_gb_per_s,
        gmac_per_s=macs / spent_ns,
        integer_fraction=with_weights / spent_ns / limits.integer_peak_gmac_per_s,
    )


def verdict(phase: str, steps: Sequence[StepRow], limits: Limits) -> tuple[str, str]:
    """What takes most of the time, and which limit that is nearest to."""
    time_us = sum(step.time_us for step in steps)
    with_weights = [step for step in steps if step.op != "attention" and step.macs > 0]
    attention = [step for step in steps if step.op == "attention"]
    weights, attends = (make_row("", part, time_us, limits) for part in (with_weights, attention))
    rest = 1 - weights.share - attends.share
    if rest >= max(weights.share, attends.share):
        return "overhead", (
            f"{phase} is bound by overhead: norms, rounding and what lies between the steps take "
            f"{rest:.0%} of its time"
        )
    if attends.share > weights.share:
        return "attention", (
            f"{phase} is bound by attention: it takes {attends.share:.0%} of the time, at "
            f"{told(attends.read_fraction)} of the read bandwidth"
        )
    products = sum(step.products for step in with_weights)
    macs = sum(step.macs for step in with_weights)
    used = weights.integer_fraction * (products or PRODUCTS["float"] * macs) / macs
    taken = f"products with weights take {weights.share:.0%} of its time, at"
    if weights.read_fraction >= used:
        return "memory", (
            f"{phase} is bound by memory: {taken} {told(weights.read_fraction)} of the read "
            "bandwidth"
        )
    if not products:
        return "float arithmetic", (
            f"{phase} is bound by float arithmetic: {taken} {weights.gmac_per_s:.0f} GMAC/s"
        )
    full = f" ({macs / products:.2f} would be all of it)" if products > macs else ""
    return "integer arithmetic", (
        f"{phase} is bound by integer arithmetic: {taken} {told(weights.integer_fraction)} of the "
        f"int8 peak{full}"
    )
