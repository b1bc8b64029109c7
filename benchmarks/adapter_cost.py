"""What an adapter costs: decode steps and prompts with and without it, in turn, in one process.

    python benchmarks/adapter_cost.py MODEL [--rank 16] [--threads 1 2] [--profile] [--llama PYTHON]

MODEL is a GGUF file or the name of a model; the adapter is one of random numbers on all linear
layers but the head. Without it the plan is the one of a model that was loaded without adapters. A
number is how much longer the step or prompt takes with the adapter: the median of the ratios of all
rounds, the ratio of the fastest, and that of the processor time of both. Which of both comes first
in a round is random, so that nothing that returns at regular times favours one. --llama is the
interpreter of an environment with llama-cpp-python, which then does the same with the same files;
what the adapter adds to the logits behind a short prompt is compared first, as a correlation.
--profile adds where the time goes, by kinds of steps, each step at its fastest: what a busy machine
still tells.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from peer_process import Worker

from slmq.checkpoint import Layout, open_checkpoint
from slmq.engine.adapters import Adapter, fit
from slmq.engine.opening import record_plan
from slmq.engine.options import LoadOptions
from slmq.hub import resolve
from slmq.models.adapted import wishes_of
from slmq.models.loading import LoadedWeights, load_weights
from slmq.models.registry import FAMILIES
from slmq.plan.plan import RecordedPlan
from slmq.weights.lora import read_lora

FIRST_PROMPT = 16  # tokens before the decode steps
SHORT_PROMPT = list(range(1, FIRST_PROMPT + 1))
PROFILED = 200  # runs of one row of which a profile takes the fastest of every step
F64 = npt.NDArray[np.float64]
Timed = Callable[[], tuple[float, float]]  # seconds of the clock and of processors


class Pair(NamedTuple):
    """The same work without and with the adapter."""

    plain: Timed
    adapted: Timed


def write_adapter(path: Path, loaded: LoadedWeights, rank: int) -> None:
    """A GGUF adapter of random numbers on every matrix of the layers."""
    import gguf

    rng = np.random.default_rng(1)
    family = loaded.family.__name__.rpartition(".")[2]
    writer = gguf.GGUFWriter(path, next(k for k, v in FAMILIES.items() if v == family))
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for name, wish in wishes_of(loaded, Layout(gguf_terms=True)):
        if not name.startswith("blk."):
            continue
        a = rng.normal(0, wish.k**-0.5, (rank, wish.k)).astype(np.float16)
        writer.add_tensor(f"{name}.weight.lora_a", a)
        b = rng.normal(0, 0.01, (wish.n, rank)).astype(np.float16)
        writer.add_tensor(f"{name}.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Ours:
    """A plan with an adapter, or one that takes none."""

    def __init__(self, plan: RecordedPlan, adapter: Adapter | None) -> None:
        self._plan = plan
        self._given = None if adapter is None else [adapter.native]
        self._sequence = plan.cache.sequence()
        self._profile = False

    def _run(self, tokens: list[int]) -> list[float] | None:
        ids, last = np.array(tokens, np.int32), np.array([len(tokens) - 1], np.int32)
        rows = [(self._sequence, len(tokens))]
        return self._plan.native.run(ids, rows, last, -1, self._profile, adapters=self._given)

    def _timed(self, parts: list[list[int]]) -> tuple[float, float]:
        began, processor = time.perf_counter(), time.process_time()
        for part in parts:
            self._run(part)
        return time.perf_counter() - began, time.process_time() - processor

    def prompt(self, count: int) -> tuple[float, float]:
        """A prompt of so many tokens, in as large runs as the plan takes."""
        self._sequence.truncate(0)
        most = self._plan.native.max_rows
        tokens = [1 + i % 200 for i in range(count)]
        return self._timed([tokens[i : i + most] for i in range(0, count, most)])

    def logits(self, tokens: list[int]) -> F64:
        """Behind a prompt."""
        self._sequence.truncate(0)
        self._run(tokens)
        return np.array(self._plan.logits()[0], np.float64)

    def steps(self, count: int) -> tuple[float, float]:
        """So many tokens, one by one."""
        self._sequence.truncate(0)
        self._run(SHORT_PROMPT)
        return self._timed([[1 + i] for i in range(count)])

    def profile(self, rows: int) -> F64:
        """Microseconds of every step of a run of so many rows."""
        self._sequence.truncate(0)
        self._profile = True
        times = self._run([1 + i % 200 for i in range(rows)])
        self._profile = False
        assert times is not None
        return np.array(times)

    def by_kind(self, times: F64) -> Counter[str]:
        """The same by kinds of steps, and of all."""
        found: Counter[str] = Counter()
        for step, took in zip(self._plan.steps, times, strict=True):
            found[step.op] += took
            found["all"] += took
        return found


def ratios(pair: Pair, rounds: int) -> tuple[str, float]:
    """How much longer the adapted one takes, in words; and the seconds of the plain one."""
    both = (pair.plain, pair.adapted)
    found: tuple[list[F64], list[F64]] = ([], [])
    order = np.random.default_rng(1)
    for i in range(rounds + 1):
        for which in order.permutation(2):
            times = np.array(both[which]())
            if i:  # the first is a trial
                found[which].append(times)
    plain, adapted = (np.array(times) for times in found)
    parts = [
        f"median {_more(np.median(adapted[:, 0] / plain[:, 0]))}",
        f"fastest {_more(adapted[:, 0].min() / plain[:, 0].min())}",
    ]
    if (plain[:, 1] > 0).all():
        parts.append(f"processor {_more(adapted[:, 1].sum() / plain[:, 1].sum())}")
    return "  ".join(parts), float(np.median(plain[:, 0]))


def _more(ratio: float) -> str:
    return f"{100 * (ratio - 1):+6.1f}%"


def show(name: str, threads: int, steps: Pair, prompt: Pair, args: argparse.Namespace) -> None:
    """A line for each kind of work."""
    for kind, pair, tokens in (("decode", steps, args.steps), ("prompt", prompt, args.prompt)):
        told, seconds = ratios(pair, args.rounds)
        speed = tokens / seconds
        print(f"{name:10} {threads:2} threads  {kind}  {speed:8.1f} tokens/s alone  {told}")


def ours(loaded: LoadedWeights, path: Path, threads: int, args: argparse.Namespace) -> F64:
    """Measures slmq; returns what the adapter adds to logits."""
    options = LoadOptions(n_threads=threads)
    plan = record_plan(loaded, options, adapters=True)
    adapted = Ours(plan, fit(plan, loaded, read_lora(path)))
    plain = Ours(record_plan(loaded, options), None)
    show(
        "slmq",
        threads,
        Pair(lambda: plain.steps(args.steps), lambda: adapted.steps(args.steps)),
        Pair(lambda: plain.prompt(args.prompt), lambda: adapted.prompt(args.prompt)),
        args,
    )
    for rows in (1, min(args.prompt, plan.native.max_rows)) if args.profile else ():
        both, repeats = (plain, adapted), PROFILED if rows == 1 else args.rounds
        best = [one.profile(rows) for one in both]
        for _ in range(repeats):
            best = [np.minimum(b, one.profile(rows)) for b, one in zip(best, both, strict=True)]
        without, with_it = plain.by_kind(best[0]), adapted.by_kind(best[1])
        for op in sorted(with_it, key=lambda op: without[op] - with_it[op]):
            print(f"  {rows:4} rows  {op:16} {without[op]:10.1f} us  {with_it[op]:10.1f} us")
    return adapted.logits(SHORT_PROMPT) - plain.logits(SHORT_PROMPT)


def theirs(model: Path, path: Path, added: F64, args: argparse.Namespace) -> None:
    """Measures llama.cpp, whose adapter should add to logits what ours has `added`."""
    script = Path(__file__).with_name("peer_llama.py")
    positions = FIRST_PROMPT + max(args.prompt, args.steps)
    with (
        Worker("llama.cpp", args.llama, script) as plain,
        Worker("llama.cpp", args.llama, script) as adapted,
    ):
        for worker, options in ((plain, {}), (adapted, {"lora_path": str(path)})):
            worker.ask("load", model=str(model), positions=positions, batch=1, options=options)

        adds, base = (
            np.array(worker.ask("logits", tokens=SHORT_PROMPT)["logits"])
            for worker in (adapted, plain)
        )
        alike = np.corrcoef(added, (adds - base)[: len(added)])[0, 1]
        print(f"llama.cpp  what the adapter adds to logits: correlation with slmq {alike:.4f}")

        def timed(worker: Worker, op: str, **fields: object) -> tuple[float, float]:
            return worker.ask(op, **fields)["seconds"], 0.0

        tokens = [1 + i % 200 for i in range(args.prompt)]
        each = [[1 + i % 200 for i in range(args.steps)]]
        for threads in args.threads:
            for worker in (plain, adapted):
                worker.ask("use_threads", threads=threads)
            show(
                "llama.cpp",
                threads,
                Pair(
                    lambda: timed(plain, "steps", sequences=each),
                    lambda: timed(adapted, "steps", sequences=each),
                ),
                Pair(
                    lambda: timed(plain, "prompt", tokens=tokens),
                    lambda: timed(adapted, "prompt", tokens=tokens),
                ),
                args,
            )


def main() -> None:
    """Prints a line for every engine, number of threads, and kind of work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--llama", type=Path, help="Python with llama-cpp-python")
    args = parser.parse_args()
    model = Path(args.model) if Path(args.model).exists() else resolve(args.model).path
    with open_checkpoint(model) as checkpoint:
        loaded = load_weights(checkpoint, threads=max(args.threads))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.gguf"
        write_adapter(path, loaded, args.rank)
        for threads in args.threads:
            added = ours(loaded, path, threads, args)
        if args.llama is not None:
            theirs(model, path, added, args)


if __name__ == "__main__":
    main()
