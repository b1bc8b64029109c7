"""Answers per second when several prompts come at once: slmq's scheduler beside other engines.

    python benchmarks/concurrency.py --model smollm2-135m-instruct
    python benchmarks/concurrency.py --shape tinyllama-1.1b --format q4_0 --peer llama.cpp

All engines load the same GGUF file, stay loaded in processes of their own, and run in turn. A
number is the tokens of all answers by the time from the first prompt to the last token, the median
of the rounds; beside it, how many CPUs were busy. The last line compares slmq's scheduler, for 8
answers behind a single token, with the bare runs that `slmq bench --batch 8` measures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from peer_install import PEERS, ensure_environment, peer_named
from peer_process import PeerError, Worker
from peers import counts, cpu_name, find_model, say

from slmq.errors import Error
from slmq.hub.cache import cache_dir

__all__ = ["Cell", "as_markdown", "main", "measure"]

SIDE_BY_SIDE = 8  # answers where the scheduler is compared with bare runs


class Cell(NamedTuple):
    """What one engine did with so many prompts at once.

    Attributes
    ----------
    engine : str
    answers : int
    tokens_per_s : list of float
        Of every round.
    cpus : list of float
        How many were busy.
    """

    engine: str
    answers: int
    tokens_per_s: list[float]
    cpus: list[float]

    @property
    def speed(self) -> float:
        """The median."""
        return statistics.median(self.tokens_per_s)


def measure(
    workers: Sequence[Worker],
    numbers: Sequence[int],
    *,
    prompt: int,
    count: int,
    rounds: int,
    vocabulary: int,
) -> list[Cell]:
    """Every engine with every number of prompts; the first round is not counted."""
    rng = random.Random(16)
    cells = []
    for number in numbers:
        found = [Cell(worker.name, number, [], []) for worker in workers]
        for i in range(rounds + 1):
            prompts = [[rng.randrange(vocabulary) for _ in range(prompt)] for _ in range(number)]
            for worker, cell in zip(workers, found, strict=True):
                before_s = worker.cpu_s
                seconds = worker.ask("answers", prompts=prompts, count=count)["seconds"]
                if i:
                    cell.tokens_per_s.append(number * count / seconds)
                    cell.cpus.append((worker.cpu_s - before_s) / seconds)
        say(", ".join(f"{cell.engine} {cell.speed:.0f} tokens/s" for cell in found) + f" x{number}")
        cells += found
    return cells


def beside_bare_runs(worker: Worker, count: int, rounds: int, vocabulary: int) -> float:
    """Tokens per second of the scheduler by those of the engine: the median of the rounds."""
    rng = random.Random(8)
    ratios = []
    for i in range(rounds + 1):
        firsts = [[rng.randrange(vocabulary)] for _ in range(SIDE_BY_SIDE)]
        rows = [[rng.randrange(vocabulary) for _ in range(count)] for _ in range(SIDE_BY_SIDE)]
        served_s = worker.ask("answers", prompts=firsts, count=count)["seconds"]
        bare_s = worker.ask("steps", sequences=rows)["seconds"]
        if i:
            ratios.append(float(bare_s / served_s))
    return statistics.median(ratios)


def as_markdown(cells: Sequence[Cell], name: str, ratio: float) -> str:
    """A table: a line for each number of prompts, slmq first."""
    engines = list(dict.fromkeys(cell.engine for cell in cells))
    heads = ["at once", *(f"{engine}, tokens/s (CPUs)" for engine in engines)]
    heads += [f"slmq / {engine}" for engine in engines[1:]]
    lines = [f"{name}; {cpu_name()}", "", row(heads), row(["---:"] * len(heads))]
    for number in dict.fromkeys(cell.answers for cell in cells):
        found = {cell.engine: cell for cell in cells if cell.answers == number}
        texts = [str(number)]
        for engine in engines:
            cell = found[engine]
            texts.append(f"{cell.speed:.0f} ({statistics.median(cell.cpus):.1f})")
        own = found[engines[0]].speed
        texts += [f"{own / found[engine].speed:.2f}" for engine in engines[1:]]
        lines.append(row(texts))
    lines += ["", f"Scheduler by bare runs of {SIDE_BY_SIDE} rows: {ratio:.2f}"]
    return "\n".join(lines)


def row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="a .gguf file, or a name that slmq resolves to one")
    what.add_argument("--shape", help="random weights in the sizes of a model")
    add("--format", default="q4_0", help="of a shape (default q4_0)")
    add("--peer", action="append", help=f"of {', '.join(PEERS)}; may be repeated (default: all)")
    add("--python", action="append", default=[], metavar="PEER=PATH", help="its interpreter")
    add("--at-once", type=counts, default=[1, 2, 4, 8, 16, 32], help="(default 1,2,4,8,16,32)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="(default: all CPUs)")
    add("--prompt", type=int, default=128, help="tokens of each prompt (default 128)")
    add("--gen", type=int, default=64, help="tokens of each answer (default 64)")
    add("--rounds", type=int, default=3, help="counted ones (default 3)")
    add("--json", type=Path, metavar="FILE", help="write everything that was found")
    add("--cache", type=Path, help="folder of environments and random models")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measures and prints."""
    root = args.cache or cache_dir() / "peers"
    pythons = dict(text.split("=", 1) for text in args.python)
    peers = [peer_named(name) for name in args.peer or ("llama.cpp", "openvino")]
    found = [
        (peer, Path(pythons[peer.name]) if peer.name in pythons else ensure_environment(peer, root))
        for peer in peers
    ]
    model, name = find_model(args, root)
    with ExitStack() as stack:
        own = PEERS["slmq"]
        workers = [stack.enter_context(Worker("slmq", Path(sys.executable), own.worker))]
        for peer, python in found:
            name_of = "peer slmq" if peer is own else peer.name
            workers.append(stack.enter_context(Worker(name_of, python, peer.worker)))
        largest = max(*args.at_once, SIDE_BY_SIDE)
        infos: list[dict[str, Any]] = []
        for worker in workers:
            say(f"{worker.name}: loading {name}")
            fields = {"positions": args.prompt + args.gen, "batch": largest, "options": {}}
            infos.append(worker.ask("load", model=str(model), **fields))
            worker.ask("use_threads", threads=args.threads)
        vocabulary = min(info["vocabulary"] for info in infos)
        cells = measure(
            workers,
            args.at_once,
            prompt=args.prompt,
            count=args.gen,
            rounds=args.rounds,
            vocabulary=vocabulary,
        )
        ratio = beside_bare_runs(workers[0], args.gen, args.rounds, vocabulary)
    if args.json is not None:
        whole = {"model": name, "engines": infos, "cells": [c._asdict() for c in cells]}
        args.json.write_text(json.dumps(whole | {"scheduler_by_bare": ratio}, indent=1), "utf-8")
    print(as_markdown(cells, name, ratio))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse(argv)
    try:
        run(args)
    except (Error, ImportError, OSError, PeerError, ValueError) as error:
        print(f"concurrency: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
