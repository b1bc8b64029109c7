"""Decode beside a busy process on the same cores, over decode on a quiet machine.

Alternates: a round of decode as it is, a round beside one process that does nothing but compute.
The bound is what the scheduler leaves: beside one neighbour on 2 cores our 2 threads of 3 get 1.33
(ratio .67), or 1.5 (.75) if the neighbour stays on one core.

    python benchmarks/neighbour.py MODEL [--threads 2] [--seconds 2] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from slmq.engine.engine import Engine
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.engine.sequence import TokenSequence
from slmq.hub import resolve

PROMPT = 16
LIMIT_S = 600  # the neighbour ends by itself even if this process is killed
SPIN = f"import time\nend = time.monotonic() + {LIMIT_S}\nwhile time.monotonic() < end: pass"


@contextmanager
def busy_process() -> Iterator[None]:
    """One process that computes without pause while the block runs."""
    with subprocess.Popen([sys.executable, "-c", SPIN]) as process:
        try:
            time.sleep(0.3)  # until it has started and the scheduler has noticed it
            yield
        finally:
            process.kill()


def tokens_per_s(engine: Engine, sequence: TokenSequence, seconds: float) -> float:
    """Decode for about that long, in a context of 16 to 80 tokens."""
    start, fed = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        sequence.truncate(PROMPT)
        for token in range(1, 65):
            engine.feed(sequence, [token])
        fed += 64
    return fed / (time.perf_counter() - start)


def main() -> None:
    """Prints the rounds and the median ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="catalogue name, folder or .gguf file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    engine = open_engine(resolve(options.model).path, LoadOptions(n_threads=options.threads))
    sequence = engine.sequence()
    engine.feed(sequence, range(1, PROMPT + 1))
    tokens_per_s(engine, sequence, 0.5)
    ratios = []
    for _ in range(options.rounds):
        quiet = tokens_per_s(engine, sequence, options.seconds)
        with busy_process():
            busy = tokens_per_s(engine, sequence, options.seconds)
        ratios.append(busy / quiet)
        print(f"quiet {quiet:.1f}  busy {busy:.1f} tokens/s  ratio {busy / quiet:.2f}", flush=True)
    print(
        f"median ratio {statistics.median(ratios):.2f}"
        f" ({min(ratios):.2f} to {max(ratios):.2f}), {options.threads} threads"
    )


if __name__ == "__main__":
    main()
