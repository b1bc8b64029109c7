"""Speed of a model beside the limits of the machine, measured in the same run.

`ppN` reads a prompt of N tokens into an empty context and computes the logits of the last one;
`tgN` then feeds N tokens one by one, from an empty context, with logits for each; `tgNxM` does that
for M sequences at once. Sampling and text are left out: they cost microseconds, and random weights
say nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

import slmq._native as _native
import slmq.hub as hub
from slmq.checkpoint import open_checkpoint
from slmq.engine.engine import MAX_OUTPUTS
from slmq.engine.opening import record_plan
from slmq.engine.options import LoadOptions
from slmq.machine.memory import peak_memory_bytes
from slmq.models.loading import LoadedWeights, load_weights
from slmq.models.registry import family_of, refuse_encoder
from slmq.plan.tuning import ensure_tuned, tuned
from slmq.speed.limits import Limits, probe
from slmq.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import numpy.typing as npt

    from slmq.plan.plan import RecordedPlan

__all__ = ["BenchResult", "Loaded", "Row", "Speed", "bench", "load", "load_shape"]

PAGE_POSITIONS = 64  # of the cache


@dataclass(frozen=True)
class Speed:
    """Tokens per second over the repeats."""

    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Row:
    """One test at one number of threads.

    Attributes
    ----------
    test : str
        "pp512", "tg64", "tg64x4", ...
    threads : int
    tokens_per_s : Speed
        Of all sequences together.
    read_fraction : float
        Bytes of weights and of the cache that a run must read, times runs per second, over the
        read bandwidth of as many threads.
    integer_fraction : float
        Multiply-accumulates with weights per token times tokens per second, over the int8 peak
        of as many threads. Activations of 16 bits take two int8 products for each, so with them
        0.5 is full use.
    """

    test: str
    threads: int
    tokens_per_s: Speed
    read_fraction: float
    integer_fraction: float


@dataclass(frozen=True)
class BenchResult:
    """All that a bench found; `as_json` is what `slmq bench --json` prints."""

    model: str
    format: str
    isa: str
    tuning: str
    limits: list[Limits]
    rows: list[Row]
    load_s: float
    peak_memory_bytes: int | None

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return asdict(self)


@dataclass(frozen=True)
class Loaded:
    """Weights to bench.

    Attributes
    ----------
    name : str
    weights : LoadedWeights
    n_ctx : int
        Most positions that a test may use.
    load_s : float
        Seconds that reading and packing took (tokenizer included), or making up a shape.
    """

    name: str
    weights: LoadedWeights
    n_ctx: int
    load_s: float


@dataclass(frozen=True)
class Trial:
    """What is timed.

    Attributes
    ----------
    name : str
    tokens : int
        Of each sequence.
    whole : bool
        A prompt: in runs as long as the plan takes, logits at its end. Else one token at a time,
        logits for each.
    sequences : int
        That a run continues; more than one only token by token.
    """

    name: str
    tokens: int
    whole: bool
    sequences: int = 1

    def chunk(self, plan: RecordedPlan) -> int:
        """Rows of one sequence in a run."""
        return plan.native.max_rows if self.whole else 1


@dataclass(frozen=True)
class Work:
    """What one test has to move and multiply, of a plan.

    Attributes
    ----------
    read_bytes_per_token : float
        Weights (once a run; of experts those that rows went to) and cached keys and values.
    macs_per_token : float
        With weights; the head counts for the rows that have logits.
    """

    read_bytes_per_token: float
    macs_per_token: float

    @classmethod
    def of(cls, plan: RecordedPlan, test: Trial, read: int | None = None) -> Work:
        """Of one test on this plan; `read`: bytes of weights that it was seen to read.

        They must be known of mixtures of experts, whose rows may go to the same ones or not.
        """
        tokens, chunk = test.tokens, test.chunk(plan)
        select = next(i for i, step in enumerate(plan.steps) if step.op == "select")
        body, head = plan.steps[:select], plan.steps[select:]
        runs = -(-tokens // chunk)
        heads = 1 if test.whole else runs
        if read is None:
            read = runs * sum(s.weight_bytes for s in body)
            read += heads * sum(s.weight_bytes for s in head)
        # A run attends to all positions up to its last row, and reads them at least once.
        cached = sum(min((i + 1) * chunk, tokens) for i in range(runs)) * test.sequences
        moved = read + cached * plan.native.page_bytes / PAGE_POSITIONS
        macs = tokens * sum(s.macs_per_row for s in body)
        macs += heads * sum(s.macs_per_row for s in head)
        return cls(moved / (tokens * test.sequences), macs / tokens)


def load(
    model: str,
    options: LoadOptions | None = None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: hub.Progress | None = None,
) -> Loaded:
    """Loads a model for `bench`, its tokenizer included in the time; errors as `slmq.load`."""
    options = LoadOptions() if options is None else options
    threads = _native.resolve_threads(options.n_threads)["threads"]
    found = hub.resolve(
        model, revision=revision, local_files_only=local_files_only, progress=progress
    )
    ensure_tuned(hub.cache_dir())
    began_s = time.perf_counter()
    with open_checkpoint(found.path) as checkpoint:
        refuse_encoder(family_of(checkpoint)[0], found.path, "this measurement")
        load_tokenizer(checkpoint)
        weights = load_weights(
            checkpoint, threads=threads, format=options.format, memory=options.memory
        )
    load_s = time.perf_counter() - began_s
    n_ctx = weights.config.max_positions if options.n_ctx is None else options.n_ctx
    return Loaded(found.name, weights, n_ctx, load_s)


def load_shape(shape: str, weight_format: str) -> Loaded:
    """Random weights of a known architecture for `bench`; errors as `shapes.random_weights`."""
    from slmq.speed.shapes import random_weights, shape_named

    name = shape_named(shape).name
    ensure_tuned(hub.cache_dir())
    began_s = time.perf_counter()
    weights = random_weights(name, weight_format)
    load_s = time.perf_counter() - began_s
    return Loaded(f"shape:{name}", weights, weights.config.max_positions, load_s)


def bench(
    loaded: Loaded,
    *,
    prompt: int = 512,
    gen: int = 64,
    batch: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    repeat: int = 3,
    options: LoadOptions | None = None,
    isa: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> BenchResult:
    """Measures prompt reading and generation.

    Probes of the machine's limits run between the repeats, so a busy neighbour slows both.

    Parameters
    ----------
    prompt, gen : int
        Tokens of the two tests; 0 leaves one out.
    batch : sequence of int
        Sequences that generate at once; a test for every number.
    threads : sequence of int
        Every one is measured.
    repeat : int
        Timed runs of each test, after one that is not timed.
    options : LoadOptions, optional
        How the plan is recorded; `threads` stands in for its number of threads.
    isa : str, optional
        Kernels to run, as SLMQ_ISA.
    progress : callable, optional
        Called with (steps done, steps in all, what comes next).

    Raises
    ------
    ValueError
        For numbers out of range.
    """
    options = LoadOptions() if options is None else options
    check_counts(loaded, prompt, gen, batch, threads, repeat)
    tests = [Trial(f"pp{prompt}", prompt, True)] * (prompt > 0)
    if gen > 0:
        tests += [Trial(f"tg{gen}" + f"x{m}" * (m > 1), gen, False, m) for m in batch]
    steps = _Steps(progress, len(threads) * (len(tests) + repeat * (len(tests) + 1)))
    limits: list[Limits] = []
    rows: list[Row] = []
    peak, used_isa, record_s = None, "", 0.0
    for count in threads:
        began_s = time.perf_counter()
        plan = record_plan(loaded.weights, replace(options, n_threads=count), isa=isa)
        record_s = record_s or time.perf_counter() - began_s
        used_isa = plan.native.isa
        for test in tests:
            steps.begin(f"{test.name}, {_threads(count)}, warming up")
            time_run(plan, test)
        # The probes hold more memory than a small model: the peak is taken before the first.
        peak = peak_memory_bytes() if peak is None else peak
        best, found = measure(plan, tests, repeat, steps)
        limits.append(best)
        rows.extend(found)
    packed = loaded.weights.formats
    return BenchResult(
        model=loaded.name,
        format="+".join(sorted(packed, key=packed.__getitem__, reverse=True)),
        isa=used_isa,
        tuning=tuned(used_isa).why,
        limits=limits,
        rows=rows,
        load_s=loaded.load_s + record_s,
        peak_memory_bytes=peak,
    )


class _Steps:
    """Counts what is done and tells it."""

    def __init__(self, progress: Callable[[int, int, str], None] | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._begun = 0

    def begin(self, what: str) -> None:
        if self._progress is not None:
            self._progress(self._begun, self._total, what)
        self._begun += 1


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def measure(
    plan: RecordedPlan, tests: Sequence[Trial], repeat: int, steps: _Steps
) -> tuple[Limits, list[Row]]:
    """Runs tests and probes in turns, and makes the rows of one number of threads."""
    threads = plan.native.threads
    speeds: dict[str, list[float]] = {test.name: [] for test in tests}
    probes = []
    for turn in range(1, repeat + 1):
        steps.begin(f"limits, {_threads(threads)}, {turn} of {repeat}")
        probes.append(probe(threads, plan.native.isa))
        for test in tests:
            steps.begin(f"{test.name}, {_threads(threads)}, {turn} of {repeat}")
            tokens = test.tokens * test.sequences
            speeds[test.name].append(tokens / time_run(plan, test))
    works = [Work.of(plan, test, weights_read(plan, test)) for test in tests]
    best = Limits(
        threads,
        max(p.read_gb_per_s for p in probes),
        max(p.integer_peak_gmac_per_s for p in probes),
    )
    rows = [
        make_row(test.name, speeds[test.name], work, best)
        for test, work in zip(tests, works, strict=True)
    ]
    return best, rows


def check_counts(
    loaded: Loaded,
    prompt: int,
    gen: int,
    batch: Sequence[int],
    threads: Sequence[int],
    repeat: int,
) -> None:
    """Raises ValueError for what `bench` cannot run."""
    for name, value in (("prompt", prompt), ("gen", gen)):
        if not 0 <= value <= loaded.n_ctx:
            raise ValueError(
                f"{name}: expected 0 to {loaded.n_ctx} tokens, the context of {loaded.name}; "
                f"got {value}"
            )
    if prompt == gen == 0:
        raise ValueError("prompt and gen are both 0, so there is nothing to measure")
    if repeat < 1:
        raise ValueError(f"repeat: expected at least 1, got {repeat}")
    if not batch or not all(1 <= m <= MAX_OUTPUTS for m in batch):
        raise ValueError(f"batch: expected numbers from 1 to {MAX_OUTPUTS}, got {list(batch)}")
    if not threads:
        raise ValueError("threads: expected at least one number")
    for count in threads:
        _native.resolve_threads(count)


def time_run(plan: RecordedPlan, test: Trial) -> float:
    """Seconds to feed random tokens to empty sequences, logits computed and copied out."""
    tokens, many, chunk = test.tokens, test.sequences, test.chunk(plan)
    ids = np.random.default_rng(tokens).integers(0, plan.vocabulary, (tokens, many), np.int32)
    sequences = [plan.cache.sequence() for _ in range(many)]
    nothing: npt.NDArray[np.int32] = np.zeros(0, np.int32)
    began_s = time.perf_counter()
    for start in range(0, tokens, chunk):
        part = ids[start : start + chunk].reshape(-1)
        wanted = not test.whole or start + len(part) == tokens
        # One row at the end of a prompt, one of every sequence in a step.
        rows = np.arange(len(part) - many, len(part), dtype=np.int32) if wanted else nothing
        plan.run(part, [(sequence, len(part) // many) for sequence in sequences], rows)
        if wanted:
            plan.logits()
    seconds = time.perf_counter() - began_s
    for sequence in sequences:
        sequence.truncate(0)
    return seconds


def weights_read(plan: RecordedPlan, test: Trial) -> int | None:
    """Bytes of weights that a test reads, by running it; None where that is known without."""
    if not any(step.op.startswith("experts.") for step in plan.steps):
        return None
    before = plan.native.bytes_read
    time_run(plan, test)
    return plan.native.bytes_read - before


def make_row(test: str, speeds: Sequence[float], work: Work, limits: Limits) -> Row:
    """A row of the result; the fractions are those of the median speed."""
    median = statistics.median(speeds)
    return Row(
        test,
        limits.threads,
        Speed(median, min(speeds), max(speeds)),
        read_fraction=work.read_bytes_per_token * median / (limits.read_gb_per_s * 1e9),
        integer_fraction=work.macs_per_token * median / (limits.integer_peak_gmac_per_s * 1e9),
    )
