"""Cases that must not take more than their time and memory, run in a process of their own.

A case that never ends, or ends the process, cannot be caught from within. So a storm is a program:
it prints what begins, and at the end a summary in JSON; `watch` runs it, and fails with the case at
which it stood still or died.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MAX_SECONDS = 1.0
MAX_BYTES = 256 << 20
STALL = 120  # seconds of the wall without a new case: far from any, on any machine


class Case(NamedTuple):
    """What one case took."""

    seconds: float  # of the processor
    peak: int  # bytes above what was in use before
    outcome: str
    source: Any


def status(name: str) -> int:
    """A line of the process's status, in bytes; zero where there is no such file."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text.split(f"{name}:")[1].split()[0]) << 10


class Peak:
    """The peak of memory since it was last asked, on Linux; zero elsewhere."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._before = status("VmRSS")

    def take(self) -> int:
        return max(status("VmHWM") - self._before, 0)


def measured(run: Callable[[], str], source: Any, peak: Peak) -> Case:
    """Run a case and say what it took."""
    print("begins", json.dumps(source)[:20000], flush=True)
    peak.reset()  # making the case is not part of it
    start = time.thread_time()
    outcome = run()
    seconds = time.thread_time() - start
    return Case(seconds, peak.take(), outcome, source)


def guard_memory(more: int) -> None:
    """Let this process have no more than so much on top, so that a fault harms nobody."""
    limit = status("VmSize") + more
    if resource is not None and limit > more:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def storm(
    strategy: st.SearchStrategy[Any], run: Callable[[Any], str], cases: int, start: int
) -> None:
    """Run so many generated cases; print a summary in JSON as the last line."""
    found: list[Case] = []
    peak = Peak()

    @seed(start)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(case: Any) -> None:
        found.append(measured(lambda: run(case), case, peak))

    one()
    print(json.dumps(summary(found)), flush=True)


def given_cases(cases: Iterable[tuple[str, Any]], run: Callable[[Any], str]) -> None:
    """Run cases that have names; print what each took, in JSON, as the last line."""
    peak = Peak()
    found = {name: measured(lambda case=case: run(case), name, peak) for name, case in cases}
    print(json.dumps({name: case._asdict() for name, case in found.items()}), flush=True)


def summary(found: list[Case]) -> dict[str, Any]:
    """What a run comes to."""
    over = [
        case for case in found
        if case.seconds > MAX_SECONDS or case.peak > MAX_BYTES or "MemoryError" in case.outcome
    ]  # fmt: skip
    return {
        "cases": len(found),
        "texts": sum(case.outcome == "text" for case in found),
        "seconds": round(sum(case.seconds for case in found), 1),
        "slowest": max(found, key=lambda case: case.seconds)._asdict(),
        "largest": max(found, key=lambda case: case.peak)._asdict(),
        "over": [case._asdict() for case in over[:20]],
    }


# From outside -------------------------------------------------------------------------------


def watch(*programs: list[str]) -> list[dict[str, Any]]:
    """Run programs of this kind side by side, and return the summaries of all."""
    running = [start(program) for program in programs]
    try:
        return [finish(process, lines) for process, lines in running]
    finally:
        for process, _ in running:
            process.kill()
            process.wait()


def start(program: list[str]) -> tuple[subprocess.Popen[str], queue.Queue[str | None]]:
    """Start a program, and read its lines as they come."""
    process = subprocess.Popen(
        [sys.executable, *program], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return process, lines


def finish(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> dict[str, Any]:
    """Wait for the summary; a case that stands still, or a process that dies, is a failure."""
    last = ""
    while True:
        try:
            line = lines.get(timeout=STALL)
        except queue.Empty:
            raise AssertionError(f"no end within {STALL} s: {last}") from None
        if line is None:
            break
        last = line
    assert process.wait() == 0, f"the process ended with {process.returncode}: {last}"
    found: dict[str, Any] = json.loads(last)
    return found
