#!/usr/bin/env python
"""How near whole models come to the limits of this machine: one command, one table.

    python benchmarks/limits.py                       # all of it: an hour on two cores
    python benchmarks/limits.py --only decode-smollm2 --runs 5 --json limits.json

Every value is a ratio. A fraction has the machine's limit, measured in this process right before
and right after the run it belongs to, with as many threads, under it (the better of the two looks
counts); variants take turns, and the median of all runs stands beside every value. On a host that
others use, even plain reading and plain dots reach their best only now and then: "at the time" is
the same speed over their mean, single passes right before and after the run.

Fractions of read bandwidth count weights and cached keys and values. Fractions of the int8 peak
count one multiply-accumulate per weight and token, of the kernels in use; groups of activations
that have 16 bits take two products for each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path

from slmq import _native
from slmq.engine.opening import record_plan
from slmq.engine.options import LoadOptions
from slmq.machine.runtime import runtime_info
from slmq.plan.plan import RecordedPlan
from slmq.speed import bench as b
from slmq.speed.limits import MOST, Limits, probe, told

SMOLLM2 = "smollm2-135m-instruct"  # of the catalogue: the Q4_1 file
LARGE = "tinyllama-1.1b"
MEAN_READ_BYTES = 128 << 20
PROMPTS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# Other rows of the same table have programs of their own.
SCRIPTS = {
    "long-context": (("long_context.py",),),
    "neighbour": (("neighbour.py", SMOLLM2),),
    "overhead": (("overhead.py", SMOLLM2),),
    "load": (("random_folder.py", "{folder}/model"), ("load_time.py", "{folder}/model")),
}


@dataclass
class Row:
    """One measure under one condition.

    Attributes
    ----------
    measure, condition : str
        What, and with how many threads, of which length.
    unit : str
        What the ratio is over.
    must, aim : float, optional
        What the project asks of it.
    at_most : bool
        Whether less is better.
    values : list of float
        One of each run, in order.
    at_the_time : list of float
        The same over what the machine did on average around the run; empty where there is no limit.
    """

    measure: str
    condition: str
    unit: str
    must: float | None = None
    aim: float | None = None
    at_most: bool = False
    values: list[float] = field(default_factory=list)
    at_the_time: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of all runs."""
        return statistics.median(self.values)

    def verdict(self) -> str:
        """ "aim", "must", "below", or nothing where nothing is asked; "refused" past a limit."""
        if self.at_the_time and self.median > MOST:
            return "refused"
        if self.must is None or self.aim is None:
            return ""
        sign = -1 if self.at_most else 1
        for name, wanted in (("aim", self.aim), ("must", self.must)):
            if sign * self.median >= sign * wanted:
                return name
        return "below"


@dataclass
class Skipped:
    """A measure that this machine cannot take."""

    measure: str
    reason: str


@dataclass(frozen=True)
class Settings:
    """Of the command line: timed runs, numbers of threads, tokens generated."""

    runs: int
    threads: tuple[int, ...]
    gen: int

    @property
    def most(self) -> int:
        """Threads of measures that are taken with one number of them."""
        return max(self.threads)


Found = list[Row | Skipped]


def tell(text: str) -> None:
    """Progress, for people."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@lru_cache(maxsize=1)
def shape_weights(name: str, weight_format: str) -> b.Loaded:
    """Random weights; the last ones are kept, for measures that share them."""
    tell(f"making up {name} in {weight_format}")
    return b.load_shape(name, weight_format)


@lru_cache(maxsize=1)
def smollm2_weights() -> b.Loaded:
    """The real model."""
    tell(f"loading {SMOLLM2}")
    return b.load(SMOLLM2)


def mean_limits(threads: int, isa: str) -> Limits:
    """Harmonic means of single passes: what the machine does now, not at its best."""
    limit_s = 1e-4  # shorter than a pass; who lost the CPU for that long has measured nothing
    reads = [_native.memory_read_gb_per_s(threads, MEAN_READ_BYTES, limit_s) for _ in range(5)]
    dots = [_native.integer_peak_gmac_per_s(threads, isa, limit_s) for _ in range(200)]
    return Limits(
        threads,
        statistics.harmonic_mean([speed for speed in reads if speed > 0]),
        statistics.harmonic_mean([speed for speed in dots if speed > 0]),
    )


def limited(plan: RecordedPlan, test: b.Trial, row: Row, choose: Callable[[b.Row], float]) -> float:
    """A fraction of one run between two looks; `row` notes it over the mean of the time, too."""
    threads, isa = plan.native.threads, plan.native.isa
    before, mean_before = probe(threads, isa), mean_limits(threads, isa)
    speed = test.tokens * test.sequences / b.time_run(plan, test)
    mean_after, after = mean_limits(threads, isa), probe(threads, isa)
    mean = Limits(
        threads,
        (mean_before.read_gb_per_s + mean_after.read_gb_per_s) / 2,
        (mean_before.integer_peak_gmac_per_s + mean_after.integer_peak_gmac_per_s) / 2,
    )
    best = Limits(
        threads,
        max(before.read_gb_per_s, after.read_gb_per_s),
        max(before.integer_peak_gmac_per_s, after.integer_peak_gmac_per_s),
    )
    work = b.Work.of(plan, test)
    row.at_the_time.append(choose(b.make_row(test.name, [speed], work, mean)))
    return choose(b.make_row(test.name, [speed], work, best))


def read_fraction(row: b.Row) -> float:
    """Of read bandwidth."""
    return row.read_fraction


def integer_fraction(row: b.Row) -> float:
    """Of the int8 peak."""
    return row.integer_fraction


def turns(rows: Sequence[tuple[Row, Callable[[], float]]], runs: int) -> Found:
    """Takes every row once a run, in turn."""
    for run in range(1, runs + 1):
        for row, take in rows:
            row.values.append(take())
            tell(f"{row.measure}, {row.condition}: {row.values[-1]:.3f} (run {run} of {runs})")
    return [row for row, _ in rows]


def plans(loaded: b.Loaded, settings: Settings) -> Iterator[RecordedPlan]:
    """One for each number of threads."""
    for threads in settings.threads:
        yield record_plan(loaded.weights, LoadOptions(n_threads=threads))


def counted(threads: int) -> str:
    """A condition in words."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


# ------------------------------------------------------------------ the measures


def decode(loaded: b.Loaded, settings: Settings, must: float | None, aim: float | None) -> Found:
    """Fraction of read bandwidth while tokens are generated from an empty context."""
    test = b.Trial("tg", settings.gen, False)
    rows = []
    for plan in plans(loaded, settings):
        name = f"decode, {described(loaded)}"
        row = Row(name, counted(plan.native.threads), "of read bandwidth", must, aim)
        b.time_run(plan, test)
        rows.append((row, lambda plan=plan, row=row: limited(plan, test, row, read_fraction)))
    return turns(rows, settings.runs)


def prefill(
    loaded: b.Loaded, settings: Settings, asked: dict[int, tuple[float, float]], prompt: int = 512
) -> Found:
    """Fraction of the int8 peak while a prompt is read; `asked` by number of threads."""
    test = b.Trial(f"pp{prompt}", prompt, True)
    rows = []
    for plan in plans(loaded, settings):
        threads = plan.native.threads
        must, aim = asked.get(threads, (None, None))
        unit = f"of the {plan.native.isa} int8 peak"
        row = Row(f"prefill {prompt}, {described(loaded)}", counted(threads), unit, must, aim)
        b.time_run(plan, test)
        rows.append((row, lambda plan=plan, row=row: limited(plan, test, row, integer_fraction)))
    return turns(rows, settings.runs)


def prompts(loaded: b.Loaded, settings: Settings) -> Found:
    """Fraction of the int8 peak over lengths of the prompt, with all threads."""
    plan = record_plan(loaded.weights, LoadOptions(n_threads=settings.most))
    rows = []
    for length in PROMPTS:
        if length > loaded.n_ctx:
            break
        test = b.Trial(f"pp{length}", length, True)
        unit = f"of the {plan.native.isa} int8 peak"
        row = Row(f"prompt of {length}, {described(loaded)}", counted(settings.most), unit)
        rows.append((row, lambda test=test, row=row: limited(plan, test, row, integer_fraction)))
    b.time_run(plan, b.Trial("warm", 64, True))
    return turns(rows, settings.runs)


def batch(loaded: b.Loaded, settings: Settings) -> Found:
    """Time of a step with m sequences over a step with one, taken right before it."""
    plan = record_plan(loaded.weights, LoadOptions(n_threads=settings.most))
    asked = {4: (1.35, 1.15), 8: (2.0, 1.5)}
    alone = b.Trial("tg", settings.gen, False)
    rows = []
    for m in (2, 4, 8, 16):
        test = b.Trial(f"tgx{m}", settings.gen, False, m)
        must, aim = asked.get(m, (None, None))
        row = Row(
            f"step of m = {m} over m = 1, {described(loaded)}",
            counted(settings.most), "time over time", must, aim, at_most=True,
        )  # fmt: skip
        b.time_run(plan, test)
        rows.append((row, lambda test=test: over(plan, test, plan, alone)))
    return turns(rows, settings.runs)


def avx2(settings: Settings) -> Found:
    """Speed of decode with AVX2 kernels over that with the best of this CPU."""
    measure = f"decode with AVX2 over the best kernels, {LARGE} q4g32s"
    there = [name for name, table in _native.isa_tables().items() if table is not None]
    best = there[-1]
    if "avx2" not in there or best == "avx2":
        return [Skipped(measure, f"the best kernels that this CPU runs are {best}: {missing()}")]
    weights, threads = shape_weights(LARGE, "q4g32s").weights, settings.most
    fast, plain = (
        record_plan(weights, LoadOptions(n_threads=threads), isa=isa) for isa in (best, "avx2")
    )
    test = b.Trial("tg", settings.gen, False)
    b.time_run(plain, test)
    row = Row(measure, counted(threads), f"speed over {best}'s", 0.90, 1.0)
    return turns([(row, lambda: over(fast, test, plain, test))], settings.runs)


def over(plan: RecordedPlan, test: b.Trial, base: RecordedPlan, base_test: b.Trial) -> float:
    """Time of a run over the mean time of two others right before and after it."""
    before = b.time_run(base, base_test)
    taken = b.time_run(plan, test)
    return taken / ((before + b.time_run(base, base_test)) / 2)


def missing() -> str:
    """Which kernels this CPU lacks, and why."""
    return "; ".join(f"no {name}: {why}" for name, why in _native.isa_missing().items())


def described(loaded: b.Loaded) -> str:
    """Model and formats."""
    packed = loaded.weights.formats
    name = loaded.name.removeprefix("shape:")
    return f"{name} {'+'.join(sorted(packed, key=packed.__getitem__, reverse=True))}"


ASKED_LARGE = {1: (0.58, 0.72), 2: (0.55, 0.70)}
ASKED_SMALL = {1: (0.42, 0.60), 2: (0.40, 0.58)}
MEASURES: dict[str, Callable[[Settings], Found]] = {
    "decode-1.1b-q4g32s": lambda s: decode(shape_weights(LARGE, "q4g32s"), s, 0.82, 0.95),
    "prefill-1.1b": lambda s: prefill(shape_weights(LARGE, "q4g32s"), s, ASKED_LARGE),
    "batch-1.1b": lambda s: batch(shape_weights(LARGE, "q4g32s"), s),
    "avx2-1.1b": avx2,
    "prompts-1.1b": lambda s: prompts(shape_weights(LARGE, "q4g32s"), s),
    "decode-1.1b-q4g32a": lambda s: decode(shape_weights(LARGE, "q4g32a"), s, None, None),
    "decode-1.1b-q8g32s": lambda s: decode(shape_weights(LARGE, "q8g32s"), s, None, None),
    "decode-smollm2": lambda s: decode(smollm2_weights(), s, 0.70, 0.85),
    "prefill-smollm2": lambda s: prefill(smollm2_weights(), s, ASKED_SMALL),
    "prompts-smollm2": lambda s: prompts(smollm2_weights(), s),
}


def run_script(name: str) -> dict[str, str]:
    """What other programs of this folder print, the last of them, in processes of their own."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for script, *arguments in SCRIPTS[name]:
            found = run_program(script, [a.format(folder=folder) for a in arguments])
            if "error" in found:
                break
    return found


def run_program(script: str, arguments: Sequence[str]) -> dict[str, str]:
    """The output of one, or why there is none."""
    path = Path(__file__).with_name(script)
    if not path.is_file():
        return {"script": script, "error": "is not here"}
    tell(f"running {script}")
    ended = subprocess.run(
        [sys.executable, str(path), *arguments], capture_output=True, text=True, check=False
    )
    if ended.returncode == 0:
        return {"script": script, "output": ended.stdout.rstrip()}
    told = ended.stderr.strip().splitlines() or ["nothing"]
    return {"script": script, "error": f"left with {ended.returncode}: {told[-1]}"}


# ------------------------------------------------------------------ telling


def machine() -> dict[str, str]:
    """What the ratios were taken on."""
    info = runtime_info()
    return {
        "date": date.today().isoformat(),
        "slmq": info["slmq"],
        "cpu": info["cpu"],
        "isa": info["isa"],
        "cores": f"{info['threads']} ({info['threads_why']})",
        "load": f"{os.getloadavg()[0]:.1f} at the start",
    }


def markdown(found: Found, outputs: Sequence[dict[str, str]], about: dict[str, str]) -> str:
    """All of it for people."""
    lines = [", ".join(f"{key} {value}" for key, value in about.items()), ""]
    if rows := [row for row in found if isinstance(row, Row)]:
        lines += [
            "| measure | threads | median | all runs | unit | at the time | must | aim | reached |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
    for row in rows:
        values = ", ".join(f"{value:.3f}" for value in row.values)
        asked = [f"{value:.2f}" if value is not None else "" for value in (row.must, row.aim)]
        mean = f"{statistics.median(row.at_the_time):.3f}" if row.at_the_time else ""
        median = told(row.median, 3) if row.at_the_time else f"{row.median:.3f}"
        cells = (row.measure, row.condition.split()[0], median, values, row.unit, mean)
        lines.append(f"| {' | '.join((*cells, *asked, row.verdict()))} |")
    skipped = [row for row in found if isinstance(row, Skipped)]
    lines += [""] * bool(skipped) + [f"Skipped: {row.measure}: {row.reason}" for row in skipped]
    for output in outputs:
        shown = output.get("output", f"{output['script']} {output.get('error', '')}")
        lines += ["", f"### {output['script']}", "", "```", shown, "```"]
    return "\n".join(lines) + "\n"


def as_json(found: Found, outputs: Sequence[dict[str, str]], about: dict[str, str]) -> str:
    """All of it for programs."""
    rows = [row for row in found if isinstance(row, Row)]
    data = {
        "machine": about,
        "rows": [asdict(row) | {"median": row.median, "reached": row.verdict()} for row in rows],
        "skipped": [asdict(row) for row in found if isinstance(row, Skipped)],
        "scripts": list(outputs),
    }
    return json.dumps(data, indent=2) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", choices=[*MEASURES, *SCRIPTS], help="repeatable; by default all"
    )
    parser.add_argument("--runs", type=int, default=3, help="alternating runs (default 3)")
    parser.add_argument(
        "--threads",
        default="1,2",
        help="numbers of threads (default 1,2); the largest for the rest",
    )
    parser.add_argument("--gen", type=int, default=64, help="tokens of a decode run (default 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    chosen = parser.parse_args(arguments)
    try:
        chosen.threads = tuple(int(part) for part in chosen.threads.split(","))
    except ValueError:
        parser.error(f"--threads: expected numbers such as 1,2; got {chosen.threads}")
    if chosen.runs < 1 or chosen.gen < 1 or min(chosen.threads) < 1:
        parser.error("--runs, --gen and --threads: expected at least 1")
    if chosen.json is not None and not chosen.json.parent.is_dir():
        parser.error(f"--json: there is no folder {chosen.json.parent}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what was chosen, in the order of the table."""
    chosen = parse(arguments)
    settings = Settings(chosen.runs, chosen.threads, chosen.gen)
    about = machine()
    found: Found = []
    outputs = []
    for name in chosen.only or [*MEASURES, *SCRIPTS]:
        if name in MEASURES:
            found += MEASURES[name](settings)
        else:
            outputs.append(run_script(name))
    sys.stdout.write(markdown(found, outputs, about))
    if chosen.json is not None:
        chosen.json.write_text(as_json(found, outputs, about), encoding="utf-8")


if __name__ == "__main__":
    main()
