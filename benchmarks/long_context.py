"""Attention's fraction of read bandwidth while decoding far into a context.

The time that a long context adds to a step is attention reading the cached keys and values: their
bytes over that time, against plain reading of memory in the same process. Long steps, short steps
and the probe alternate, because a machine's speed drifts by more than the difference.

    python benchmarks/long_context.py [MODEL] [--positions 8192] [--kv f16 int8 int4]
                                      [--threads 1 2]

Without MODEL: random weights with the dimensions of SmolLM2-135M (30 layers, 9 heads, 3 KV heads of
64 channels) in q4g32a.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import numpy as np

from slmq import _native
from slmq.engine.opening import record_plan
from slmq.engine.options import LoadOptions
from slmq.plan.plan import RecordedPlan
from slmq.speed.bench import PAGE_POSITIONS, Loaded, load, load_shape
from slmq.speed.limits import PROBE_BYTES

SHAPE, FORMAT = "smollm2-135m", "q4g32a"
HEADER = (
    "kv     threads   read GB/s   short ms   long ms   attention GB/s   fraction   "
    "(smallest and largest of the rounds)   at the time"
)
MEAN_READ_BYTES = 128 << 20


@dataclass(frozen=True)
class Round:
    """Seconds of a short and a long step, bytes per second of both kinds of reading.

    `read` is the best pass of plain reading, `mean_read` the mean of passes before and after.
    """

    short_s: float
    long_s: float
    read: float
    mean_read: float
    attention: float


def fill(plan: RecordedPlan, positions: int) -> _native.KvSequence:
    """A sequence of random tokens."""
    ids = np.random.default_rng(0).integers(0, plan.vocabulary, positions).astype(np.int32)
    sequence, nothing = plan.cache.sequence(), np.zeros(0, np.int32)
    for start in range(0, positions, plan.native.max_rows):
        part = ids[start : start + plan.native.max_rows]
        plan.run(part, [(sequence, len(part))], nothing)
    return sequence


def step_s(plan: RecordedPlan, sequence: _native.KvSequence, steps: int) -> float:
    """Median seconds of one more token; the sequence is as long afterwards as before."""
    length, row, times = sequence.length, np.zeros(1, np.int32), []
    for token in range(steps):
        began_s = time.perf_counter()
        plan.run(np.array([token], np.int32), [(sequence, 1)], row)
        times.append(time.perf_counter() - began_s)
    sequence.truncate(length)
    return statistics.median(times)


def single_reads(threads: int) -> list[float]:
    """Bytes per second of single passes of plain reading: a pass takes longer than the limit."""
    passes = (_native.memory_read_gb_per_s(threads, MEAN_READ_BYTES, 1e-3) for _ in range(4))
    # Whoever lost the CPU for the whole limit has measured nothing.
    return [gb_per_s * 1e9 for gb_per_s in passes if gb_per_s > 0]


def measure(
    plan: RecordedPlan, context: _native.KvSequence, short: int, steps: int, rounds: int
) -> list[Round]:
    """Rounds at the plan's number of threads."""
    near, far = context.fork(short), context.fork(context.length)
    more = (far.length - short) * plan.native.page_bytes / PAGE_POSITIONS
    step_s(plan, near, steps), step_s(plan, far, 1)
    found = []
    for _ in range(rounds):
        read = _native.memory_read_gb_per_s(plan.native.threads, PROBE_BYTES, 0.3) * 1e9
        passes = single_reads(plan.native.threads)
        long_s, short_s = step_s(plan, far, steps), step_s(plan, near, 4 * steps)
        passes += single_reads(plan.native.threads)
        mean_read = statistics.harmonic_mean(passes) if passes else read
        found.append(Round(short_s, long_s, read, mean_read, more / (long_s - short_s)))
    return found


def report(kv: str, threads: int, rounds: list[Round]) -> str:
    """A line of the table; fractions are the medians of the rounds' own."""
    fractions = [r.attention / r.read for r in rounds]
    at_the_time = statistics.median(r.attention / r.mean_read for r in rounds)
    short_ms, long_ms, read, attention = (
        statistics.median(getattr(r, name) for r in rounds)
        for name in ("short_s", "long_s", "read", "attention")
    )
    return (
        f"{kv:5}{threads:9}{read / 1e9:12.1f}{short_ms * 1e3:11.3f}{long_ms * 1e3:10.3f}"
        f"{attention / 1e9:17.1f}{statistics.median(fractions):11.2f}"
        f"   {min(fractions):.2f} {max(fractions):.2f}{at_the_time:38.2f}"
    )


def main() -> None:
    """Prints a line per cache type and number of threads."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", help="catalogue name, folder or .gguf file")
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--short", type=int, default=128)
    parser.add_argument("--kv", nargs="+", default=["f16", "int8", "int4"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    most = max(options.threads)
    loaded: Loaded = (
        load_shape(SHAPE, FORMAT)
        if options.model is None
        else load(options.model, LoadOptions(n_threads=most))
    )
    print(HEADER)
    for kv in options.kv:
        plans = {
            t: record_plan(loaded.weights, LoadOptions(n_threads=t, kv_dtype=kv))
            for t in options.threads
        }
        context = fill(plans[most], options.positions)
        for threads, plan in plans.items():
            rounds = measure(plan, context, options.short, options.steps, options.rounds)
            print(report(kv, threads, rounds), flush=True)


if __name__ == "__main__":
    main()
