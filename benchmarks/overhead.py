"""What of a decode step is not kernels: Python, bindings, the plan, handing over between threads.

Two engines load the same file. One runs the model; the other records the same steps with kernels
that do nothing, so all the time of its step is overhead. They alternate, because a machine's speed
drifts by more than the difference.

With --answers N, a step is one of the scheduler while N answers are made: planning, sampling, text
and handing chunks to their readers count as overhead, too. The last column is how much of the step
that is: what is left when bare runs of as many rows are subtracted, without kernels, too.

    python benchmarks/overhead.py MODEL [--threads 1 2] [--steps 40] [--rounds 9] [--answers 8]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from slmq.engine.engine import Engine
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.generation.answer import Request
from slmq.generation.sampling import SamplingParams
from slmq.generation.scheduler import Scheduler
from slmq.generation.stream import TokenStream
from slmq.hub import resolve

PROMPT = 16
Timed = Callable[[int], float]  # median microseconds of so many steps
HEADER = "threads   step us   overhead us   of the step   (smallest and largest of the rounds)"


def one_token(engine: Engine) -> Timed:
    """A decode step of the engine: one token in, its logits out."""
    sequence = engine.sequence()
    engine.feed(sequence, range(1, PROMPT + 1))

    def timed(steps: int) -> float:
        sequence.truncate(PROMPT)
        times = []
        for token in range(1, steps + 1):
            start = time.perf_counter_ns()
            engine.feed(sequence, [token])
            times.append(time.perf_counter_ns() - start)
        return statistics.median(times) / 1e3

    return timed


def many_answers(engine: Engine, answers: int) -> Timed:
    """A step of the scheduler in which so many answers get a token, up to their readers."""
    scheduler = Scheduler(engine, drive=False, speculate=False)

    def timed(steps: int) -> float:
        params = SamplingParams(max_tokens=steps + 8, ignore_eos=True)
        prompts = [[1 + i, *range(2, PROMPT + 1)] for i in range(answers)]
        streams = [TokenStream(scheduler, scheduler.submit(Request(p, params))) for p in prompts]
        while scheduler.stats().waiting or any(s.poll() is None for s in streams):
            scheduler.step()
        times = []
        for _ in range(steps):
            start = time.perf_counter_ns()
            scheduler.step()
            for stream in streams:
                stream.poll()
            times.append(time.perf_counter_ns() - start)
        for stream in streams:
            stream.close()
        scheduler.step()
        return statistics.median(times) / 1e3

    return timed


def bare_runs(engine: Engine, rows: int) -> Timed:
    """A run of the plan for so many sequences."""
    segments = [(engine.plan.cache.sequence(), 1) for _ in range(rows)]
    outputs = np.arange(rows, dtype=np.int32)
    tokens = np.ones(rows, np.int32)

    def timed(steps: int) -> float:
        for sequence, _ in segments:
            sequence.truncate(0)
        times = []
        for _ in range(steps):
            start = time.perf_counter_ns()
            engine.plan.run(tokens, segments, outputs)
            times.append(time.perf_counter_ns() - start)
        return statistics.median(times) / 1e3

    return timed


def measure(
    model: str, threads: int, steps: int, rounds: int, answers: int
) -> list[tuple[float, ...]]:
    """Microseconds of the step, of overhead and, with answers, of bare runs; of every round."""
    path = resolve(model).path
    engines = [
        open_engine(path, LoadOptions(n_threads=threads), isa=isa) for isa in (None, "empty")
    ]
    timed = [many_answers(e, answers) if answers else one_token(e) for e in engines]
    if answers:
        timed.append(bare_runs(engines[1], answers))
    for each in timed:
        each(steps)
    return [tuple(each(steps) for each in timed) for _ in range(rounds)]


def main() -> None:
    """Prints a line per number of threads."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="catalogue name, folder or .gguf file")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--answers", type=int, default=0)
    options = parser.parse_args()
    print(HEADER + ("   beside bare runs" if options.answers else ""))
    for threads in options.threads:
        found = measure(options.model, threads, options.steps, options.rounds, options.answers)
        step, overhead, *bare = (statistics.median(column) for column in zip(*found, strict=True))
        ratios = [one[1] / one[0] for one in found]
        print(
            f"{threads:7}{step:10.0f}{overhead:14.1f}{overhead / step:14.2%}"
            f"   {min(ratios):.2%} {max(ratios):.2%}"
            + "".join(f"{(overhead - us) / step:35.2%}" for us in bare),
            flush=True,
        )


if __name__ == "__main__":
    main()
