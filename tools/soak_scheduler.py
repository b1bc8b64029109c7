"""Ten thousand requests in a row: does memory or the time of a run grow, and what does idling cost?

Requests of random lengths come from several threads, which read their answers, or leave in between.
After 1,000 and after 10,000 it prints memory and the times of the latest runs; then the CPU time of
ten idle seconds, and how long 200 cancelled prompts kept the engine. The cache is small, so that
what is kept has found its size by the first figure. --longest shortens the prompts, for models
that take their time.

    python tools/soak_scheduler.py MODEL [--requests 10000] [--threads 8] [--kv-bytes 16MiB]
        [--longest 90]
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from pathlib import Path

import slmq
from slmq.generation.model import Model

FIRST_FIGURE = 1000
IDLE_S = 10.0
CANCELS = 200


def resident_mib() -> float:
    """Memory of this process, as Linux tells it."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * 4096 / 2**20


def ask(model: Model, rng: random.Random, longest: int) -> None:
    """One request: read to its end, mostly."""
    prompt = [rng.randrange(4)] * rng.choice([1, longest // 3]) + [
        rng.randrange(250) for _ in range(rng.randint(1, longest))
    ]
    leaves_after = rng.choice([None, None, None, 2])
    params = {"temperature": rng.choice([0.0, 1.0]), "seed": rng.randrange(2**32)}
    asked = params | {"max_tokens": rng.randint(1, 12), "ignore_eos": True}
    with model.submit(prompt, asked, batch=rng.random() < 0.2) as stream:
        for chunk in stream:
            if chunk.generated_tokens == leaves_after:
                break


def work(model: Model, count: int, threads: int, seed: int, longest: int) -> None:
    """So many requests, from so many threads."""

    def some(which: int) -> None:
        rng = random.Random(1000 * seed + which)
        for _ in range(count // threads):
            ask(model, rng, longest)

    workers = [threading.Thread(target=some, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def report(model: Model) -> None:
    """Memory, the latest runs, and what a row has taken so far of the processors."""
    stats = model.stats()
    row_ms = time.process_time() * 1e3 / stats.rows
    print(
        f"{stats.submitted:6d} requests: {resident_mib():.1f} MiB, run p50 {stats.step_ms_p50:.3f} "
        f"ms, p99 {stats.step_ms_p99:.3f} ms, {stats.runs} runs, {stats.rows} rows, CPU "
        f"{row_ms:.3f} ms a row, {stats.preemptions} preempted, "
        f"{stats.pages_in_use} pages in use of {stats.pages_limit}",
        flush=True,
    )


def idle_cpu_s(seconds: float) -> float:
    """CPU seconds of this process while nothing is to be done."""
    time.sleep(0.5)
    began_s = time.process_time()
    time.sleep(seconds)
    return time.process_time() - began_s


def cancel_ms(model: Model) -> float:
    """From closing a stream, whose long prompt is being read, until the engine is free."""
    fits = min(model.n_ctx, 64 * (model.stats().pages_limit - 1))
    prompt = [random.randrange(250) for _ in range(fits - 8)]
    stream = model.stream(prompt, max_tokens=4, ignore_eos=True)
    time.sleep(0.002)
    began_s = time.perf_counter()
    stream.close()
    with model.exclusive():
        return (time.perf_counter() - began_s) * 1e3


def main() -> None:
    """Run the requests and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--kv-bytes", default="16MiB")
    parser.add_argument("--longest", type=int, default=90)
    args = parser.parse_args()
    with slmq.load(args.model, n_ctx=1024, kv_bytes=args.kv_bytes) as model:
        work(model, min(FIRST_FIGURE, args.requests), args.threads, 0, args.longest)
        report(model)
        if args.requests > FIRST_FIGURE:
            work(model, args.requests - FIRST_FIGURE, args.threads, 1, args.longest)
            report(model)
        print(f"idle: {idle_cpu_s(IDLE_S):.4f} CPU seconds in {IDLE_S:.0f}", flush=True)
        took_ms = [cancel_ms(model) for _ in range(CANCELS)]
        print(f"cancelled: median {statistics.median(took_ms):.2f} ms, worst {max(took_ms):.2f} ms")


if __name__ == "__main__":
    main()
