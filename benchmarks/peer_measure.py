"""Two loaded workers in turn, A B A B, and what their times say."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peer_process import Worker, others_cpu_s

__all__ = ["Row", "Side", "Spread", "Test", "counted", "measure", "summarize"]


@dataclass(frozen=True)
class Test:
    """A prompt of so many tokens, or so many steps of `batch` sequences."""

    tokens: int
    prompt: bool
    batch: int = 1

    @property
    def name(self) -> str:
        """pp512, tg64, tg64x8: as llama-bench names them; the last is of 8 sequences."""
        if self.prompt:
            return f"pp{self.tokens}"
        return f"tg{self.tokens}" + (f"x{self.batch}" if self.batch > 1 else "")


@dataclass(frozen=True)
class Spread:
    """Of the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Side:
    """One engine in one test.

    Attributes
    ----------
    tokens_per_s : Spread
        Of all sequences together.
    read_fraction, integer_fraction : float
        Bytes and multiply-accumulates per token, counted on slmq's plan for both sides, times the
        median speed, over the best of the limits that were probed in the same rounds.
    idle_cpu : float
        Processor time that this worker used while the other one ran, in cores. Beyond a few
        hundredths it disturbs the other.
    """

    tokens_per_s: Spread
    read_fraction: float
    integer_fraction: float
    idle_cpu: float


@dataclass(frozen=True)
class Row:
    """One test at one number of threads.

    Attributes
    ----------
    ratio : Spread
        Speed of slmq over speed of the peer, of each round.
    busy_cpu : float
        What other processes used during the rounds, in cores.
    seconds : list of (float, float)
        What was timed in each round: slmq, peer.
    """

    test: str
    threads: int
    ratio: Spread
    slmq: Side
    peer: Side
    read_gb_per_s: float
    integer_peak_gmac_per_s: float
    busy_cpu: float
    seconds: list[tuple[float, float]]


@dataclass
class Rounds:
    """What the rounds of one test left."""

    seconds: list[tuple[float, float]]
    idle_s: list[tuple[float, float]]  # used by slmq while the peer ran, and the other way round


def measure(
    slmq: Worker,
    peer: Worker,
    tests: Sequence[Test],
    *,
    threads: int,
    rounds: int,
    vocabulary: int,
    progress: Callable[[str], None],
) -> list[Row]:
    """Rows of all tests at one number of threads.

    Every round probes the limits, then runs each test on slmq and on the peer, with tokens that no
    round has seen before: a cache of prompts does not help. A first round is not counted.

    Raises
    ------
    PeerError
        If a worker fails.
    """
    for worker in (slmq, peer):
        progress(f"{worker.name}: {counted(threads)}")
        worker.ask("use_threads", threads=threads)
    tokens = random.Random(threads)
    found = {test: Rounds([], []) for test in tests}
    probes: list[dict[str, Any]] = []
    began_s = others_s = 0.0
    for turn in range(rounds + 1):
        if turn == 1:
            began_s, others_s = time.monotonic(), others_cpu_s(slmq, peer)
        if turn:
            probes.append(slmq.ask("limits"))
        for test in tests:
            progress(f"{test.name}, {counted(threads)}, round {turn} of {rounds}")
            times, idle = run_round(slmq, peer, test, tokens, vocabulary)
            if turn:
                found[test].seconds.append(times)
                found[test].idle_s.append(idle)
    busy = (others_cpu_s(slmq, peer) - others_s) / (time.monotonic() - began_s)
    return [
        summarize(test, threads, found[test], probes, work_of(slmq, test), max(0.0, busy))
        for test in tests
    ]


def counted(threads: int) -> str:
    """1 thread, 2 threads."""
    return f"{threads} thread{'s' * (threads > 1)}"


def run_round(
    slmq: Worker, peer: Worker, test: Test, tokens: random.Random, vocabulary: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds of (slmq, peer), and the processor seconds that each used in the other's turn."""
    sequences = [
        [tokens.randrange(vocabulary) for _ in range(test.tokens)] for _ in range(test.batch)
    ]
    fields = {"tokens": sequences[0]} if test.prompt else {"sequences": sequences}
    op = "prompt" if test.prompt else "steps"
    peer_before = peer.cpu_s
    slmq_s = float(slmq.ask(op, **fields)["seconds"])
    peer_idle, slmq_before = peer.cpu_s - peer_before, slmq.cpu_s
    peer_s = float(peer.ask(op, **fields)["seconds"])
    return (slmq_s, peer_s), (slmq.cpu_s - slmq_before, peer_idle)


def work_of(slmq: Worker, test: Test) -> dict[str, Any]:
    """Bytes and multiply-accumulates per token, of slmq's plan."""
    return slmq.ask("work", tokens=test.tokens, whole=test.prompt, batch=test.batch)


def summarize(
    test: Test,
    threads: int,
    rounds: Rounds,
    probes: Sequence[dict[str, Any]],
    work: dict[str, Any],
    busy_cpu: float,
) -> Row:
    """Ratios of each round and speeds of each side."""
    read = max(probe["read_gb_per_s"] for probe in probes)
    peak = max(probe["integer_peak_gmac_per_s"] for probe in probes)

    def side(own: int) -> Side:
        speeds = [test.tokens * test.batch / pair[own] for pair in rounds.seconds]
        speed = Spread.of(speeds)
        others_turn_s = sum(pair[1 - own] for pair in rounds.seconds)
        return Side(
            speed,
            read_fraction=work["read_bytes_per_token"] * speed.median / (read * 1e9),
            integer_fraction=work["macs_per_token"] * speed.median / (peak * 1e9),
            idle_cpu=sum(pair[own] for pair in rounds.idle_s) / others_turn_s,
        )

    return Row(
        test=test.name,
        threads=threads,
        ratio=Spread.of([peer_s / slmq_s for slmq_s, peer_s in rounds.seconds]),
        slmq=side(0),
        peer=side(1),
        read_gb_per_s=read,
        integer_peak_gmac_per_s=peak,
        busy_cpu=busy_cpu,
        seconds=rounds.seconds,
    )
