"""What of a decode step is not kernels: Python, bindings, the plan, handing over between threads.

Two engines load the same file. One runs the model; the other records the same steps with kernels
that do nothing, so all the time of its step is overhead. They alternate, because a machine's speed
drifts by more than the difference.

    python benchmarks/overhead.py MODEL [--threads 1 2] [--steps 40] [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import time

from slmq.engine.engine import Engine
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.engine.sequence import TokenSequence
from slmq.hub import resolve

PROMPT = 16
HEADER = "threads   step us   overhead us   of the step   (smallest and largest of the rounds)"


def step_us(engine: Engine, sequence: TokenSequence, steps: int) -> float:
    """Median microseconds of a decode step: one token in, its logits out."""
    sequence.truncate(PROMPT)
    times = []
    for token in range(1, steps + 1):
        start = time.perf_counter_ns()
        engine.feed(sequence, [token])
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1e3


def measure(model: str, threads: int, steps: int, rounds: int) -> list[tuple[float, float]]:
    """(step, overhead) in microseconds, of every round."""
    path = resolve(model).path
    engines = [
        open_engine(path, LoadOptions(n_threads=threads), isa=isa) for isa in (None, "empty")
    ]
    sequences = [engine.sequence() for engine in engines]
    for engine, sequence in zip(engines, sequences, strict=True):
        engine.feed(sequence, range(1, PROMPT + 1))
        step_us(engine, sequence, steps)
    pairs = []
    for _ in range(rounds):
        step, overhead = (
            step_us(engine, sequence, steps)
            for engine, sequence in zip(engines, sequences, strict=True)
        )
        pairs.append((step, overhead))
    return pairs


def main() -> None:
    """Prints a line per number of threads."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="catalogue name, folder or .gguf file")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(HEADER)
    for threads in options.threads:
        pairs = measure(options.model, threads, options.steps, options.rounds)
        step, overhead = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = [o / s for s, o in pairs]
        print(
            f"{threads:7}{step:10.0f}{overhead:14.1f}{overhead / step:14.2%}"
            f"   {min(ratios):.2%} {max(ratios):.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
