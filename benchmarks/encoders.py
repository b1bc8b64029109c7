"""Vectors of sentences: slmq in int8 beside other engines, alternating in one run.

    python benchmarks/encoders.py MODEL --text FILE [--peer NAME=PYTHON ...] [--threads 2]

MODEL is a folder of all-MiniLM-L6-v2, FILE a text that texts are cut from. Peers run in their own
environments: `torch` (sentence-transformers, float32), `onnx` (onnxruntime, the int8 graph that
ONNX_INT8 names) and `openvino` (the int8 graph that OPENVINO_INT8 names). Columns are one text of
20, 128 and 256 tokens, in milliseconds, and batches of such texts, of texts about as long (half as
long to half as long again, 256 tokens at most) and of mixed ones, in texts per second; medians of
many rounds, of which each engine has one after the other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peer_process import Worker, others_cpu_s
from tokenizers import Tokenizer

LENGTHS = (20, 128, 256)
LONGEST = 256  # tokens that the model takes
FRAME = 2  # tokens around a text
BATCH = 64
WORKER = Path(__file__).parent / "encoder_worker.py"


@dataclass(frozen=True)
class Case:
    """Texts that are embedded together.

    Attributes
    ----------
    name : str
    first, count : int
        Which of all texts.
    """

    name: str
    first: int
    count: int


def texts_of(path: Path, tokenizer: Tokenizer, lengths: list[int]) -> list[str]:
    """Texts of exactly so many tokens, frame included, from different places of a file."""
    ids = tokenizer.encode(path.read_text("utf-8")[:4_000_000], add_special_tokens=False).ids
    found, at = [], 0
    for length in lengths:
        text = ""
        wanted, take = length - FRAME, length - FRAME
        while len(tokenizer.encode(text, add_special_tokens=False).ids) != wanted:
            text = tokenizer.decode(ids[at : at + take])
            got = len(tokenizer.encode(text, add_special_tokens=False).ids)
            take += wanted - got
            if take < 1 or got == wanted:
                at += 1
                take = max(take, 1)
        at += take
        found.append(text)
    return found


def cases_of(rng: np.random.Generator) -> tuple[list[Case], list[int]]:
    """What is measured, and the lengths of all texts in the order of their use."""
    cases: list[Case] = []
    lengths: list[int] = []

    def add(name: str, wanted: list[int]) -> None:
        cases.append(
            Case(f"{'one' if len(wanted) == 1 else BATCH} {name}", len(lengths), len(wanted))
        )
        lengths.extend(wanted)

    mixed = np.clip(rng.lognormal(3.8, 0.9, BATCH), 8, LONGEST).astype(int).tolist()
    for length in LENGTHS:
        add(f"of {length}", [length])
    for length in LENGTHS:
        add(f"of {length}", [length] * BATCH)
    for length in LENGTHS:
        most = min(length * 3 // 2, LONGEST)
        add(f"about {length}", rng.integers(length // 2, most + 1, BATCH).tolist())
    add("mixed", mixed)
    return cases, lengths


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(given.model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    cases, lengths = cases_of(np.random.default_rng(0))
    texts = texts_of(given.text, tokenizer, lengths)
    peers = dict(pair.split("=", 1) for pair in given.peer)
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(name, Path(python), WORKER, name))
            for name, python in {"slmq": sys.executable, **peers}.items()
        }
        loaded = {
            name: worker.ask("load", model=str(given.model), threads=given.threads)["seconds"]
            for name, worker in workers.items()
        }
        for worker in workers.values():
            worker.ask("take", given=texts)
        nearness = cosines_to_first(workers, cases[-1])
        busy = others_cpu_s(*workers.values())
        times = measure(workers, cases, given.rounds)
        busy = others_cpu_s(*workers.values()) - busy
        memory = {name: worker.ask("memory")["bytes"] for name, worker in workers.items()}
    header = ["engine", *(case.name for case in cases), "load s", "MB", "cosine"]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for name in workers:
        cells = [cell(case, times[name, case.name]) for case in cases]
        rest = [f"{loaded[name]:.2f}", f"{memory[name] / 1e6:.0f}", f"{nearness[name]:.4f}"]
        print("| " + " | ".join([name, *cells, *rest]) + " |")
    print(f"other processes: {busy:.1f} s of CPU")


def measure(
    workers: dict[str, Worker], cases: list[Case], rounds: int
) -> dict[tuple[str, str], float]:
    """The median seconds of every case."""
    found: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        for case in cases:
            for name, worker in workers.items():
                repeats = 12 if case.count == 1 and turn else 1
                for _ in range(repeats):
                    taken = worker.ask("embed", first=case.first, count=case.count)["seconds"]
                    if turn:  # the first one warms up
                        found.setdefault((name, case.name), []).append(taken)
    return {key: statistics.median(values) for key, values in found.items()}


def cosines_to_first(workers: dict[str, Worker], case: Case) -> dict[str, float]:
    """How near the vectors of each engine are to those of torch, or else of the first."""
    vectors = {
        name: np.array(worker.ask("vectors", first=case.first, count=case.count)["vectors"])
        for name, worker in workers.items()
    }
    exact = vectors.get("torch", next(iter(vectors.values())))
    return {name: float((found * exact).sum(axis=1).mean()) for name, found in vectors.items()}


def cell(case: Case, seconds: float) -> str:
    """Milliseconds of one text, or texts per second."""
    return f"{seconds * 1e3:.2f} ms" if case.count == 1 else f"{case.count / seconds:.0f}/s"


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main()
