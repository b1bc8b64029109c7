"""An index beside others: how well passages are found, and how fast.

    python benchmarks/search.py recall DATA
    python benchmarks/search.py speed [--rows 100000]

DATA holds jsquad/paragraphs.json (Japanese paragraphs with questions, JGLUE),
wikitext2/wiki.test.raw, of which paragraphs are looked for by the headings above them, and
stsb/test.tsv and jsts/valid-v1.3.json, of whose pairs second sentences are looked for by first ones
that mean the same. The share of questions is printed whose paragraph is the first one found, or
among the first five, by vectors, by words and by both.

`speed` searches random vectors of 384 numbers with slmq, NumPy, and faiss and usearch if they are
installed, in turn: the median time of a query, the ten nearest rows of it, and the memory that
vectors take. Exact searches all, but for rounding to int8.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import slmq
import slmq._native as _native
from slmq.search.finding import best_rows
from slmq.search.vectors import MappedVectors, append_vectors, packed_vectors

ENCODER = "all-minilm-l6-v2"
TOP = 10
QUERIES = 60
ALIKE = 4.5  # of 5, from which two sentences are the same to people


def jsquad(data: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Paragraphs by name, and questions with the name of theirs."""
    rows = json.loads((data / "jsquad/paragraphs.json").read_text("utf-8"))
    texts, asked = {}, []
    for number, row in enumerate(rows):
        name = f"p{number}"
        texts[name] = row["context"].replace("[SEP]", "\n")
        asked += [(question, name) for question in row["questions"]]
    return texts, asked


def wikitext(data: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Paragraphs of articles; a question is the headings above a section, its first paragraph."""
    texts: dict[str, str] = {}
    asked = []
    title = section = ""
    fresh = False
    for line in (data / "wikitext2/wiki.test.raw").read_text("utf-8").splitlines():
        text = line.strip()
        if found := re.fullmatch(r"(=(?: =)*) (.+?) (=(?: =)*)", text):
            if found[1] == "=":
                title, section = found[2], ""
            else:
                section = found[2]
            fresh = True
        elif len(text) > 200:
            name = f"p{len(texts)}"
            texts[name] = text
            if fresh:
                asked.append((f"{title}: {section}" if section else title, name))
            fresh = False
    return texts, asked


def sentences(
    pairs: list[tuple[float, str, str]],
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The second sentences of all pairs; first ones ask for them where people call them alike."""
    names: dict[str, str] = {}
    asked = []
    for score, one, other in pairs:
        name = names.setdefault(other, f"s{len(names)}")
        if score >= ALIKE:
            asked.append((one, name))
    return {name: text for text, name in names.items()}, asked


def stsb(data: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """English sentences."""
    lines = (data / "stsb/test.tsv").read_text("utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return sentences([(float(row[0]), row[1], row[2]) for row in rows])


def jsts(data: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Japanese sentences."""
    lines = (data / "jsts/valid-v1.3.json").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return sentences([(row["label"], row["sentence1"], row["sentence2"]) for row in rows])


SETS = {"wikitext2": wikitext, "jsquad": jsquad, "stsb": stsb, "jsts": jsts}


def recall(data: Path) -> None:
    """Print the shares of questions whose paragraph is found."""
    with slmq.load_encoder(ENCODER) as encoder:
        for name, read in SETS.items():
            texts, asked = read(data)
            with tempfile.TemporaryDirectory() as folder, slmq.Index(folder, encoder) as index:
                began_s = time.perf_counter()
                index.add_texts(texts)
                took_s = time.perf_counter() - began_s
                print(f"{name}: {len(texts)} paragraphs in {len(index)} passages, {took_s:.1f} s")
                for mode in ("vectors", "words", "hybrid"):
                    first = five = 0
                    began_s = time.perf_counter()
                    for question, wanted in asked:
                        hits = index.search(question, mode=mode, top_k=20)
                        order = list(dict.fromkeys(hit.source for hit in hits))
                        first += order[:1] == [wanted]
                        five += wanted in order[:5]
                    each_ms = (time.perf_counter() - began_s) / len(asked) * 1e3
                    n = len(asked)
                    print(
                        f"  {mode:8} recall@1 {first / n:.3f}  recall@5 {five / n:.3f}  "
                        f"({n} questions, {each_ms:.1f} ms each)",
                        flush=True,
                    )


def searchers(rows: Any, folder: Path) -> dict[str, tuple[Callable[[Any], Any], int]]:
    """What finds the nearest rows of a query, and the bytes that its vectors take."""
    count, width = rows.shape
    threads = int(_native.resolve_threads(None)["threads"])
    data = packed_vectors(rows)
    append_vectors(folder / "v.bin", 0, data)
    import zlib

    mapped = MappedVectors(folder / "v.bin", width, [(len(data), zlib.crc32(data))])

    def ours(query: Any) -> Any:
        return best_rows(mapped.scores(query[None], threads)[0, :count], TOP)

    def numpy_float(query: Any) -> Any:
        scores = rows @ query
        near = np.argpartition(-scores, TOP)[:TOP]
        return near[np.argsort(-scores[near])]

    found: dict[str, tuple[Callable[[Any], Any], int]] = {
        "slmq int8": (ours, len(data)),
        "numpy float32": (numpy_float, rows.nbytes),
    }
    try:
        import faiss

        faiss.omp_set_num_threads(threads)
        flat = faiss.IndexFlatIP(width)
        flat.add(rows)
        eight = faiss.IndexScalarQuantizer(
            width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        eight.train(rows)
        eight.add(rows)
        found["faiss float32"] = (lambda q: flat.search(q[None], TOP)[1][0], rows.nbytes)
        found["faiss int8"] = (lambda q: eight.search(q[None], TOP)[1][0], count * width)
    except ModuleNotFoundError:
        print("faiss is not installed")
    try:
        from usearch.index import MetricKind, search

        short = np.clip(np.round(rows * 127 / np.abs(rows).max()), -127, 127).astype(np.int8)

        def usearch(query: Any) -> Any:
            q = np.clip(np.round(query * 127 / np.abs(query).max()), -127, 127).astype(np.int8)
            return search(short, q, TOP, MetricKind.Cos, exact=True, threads=threads).keys

        found["usearch int8"] = (usearch, short.nbytes)
    except ModuleNotFoundError:
        print("usearch is not installed")
    return found


def speed(count: int) -> None:
    """Print times and memory of searches through random vectors."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, 384)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    near = rng.integers(0, count, QUERIES)
    queries = rows[near] + 0.05 * rng.normal(size=(QUERIES, 384)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    true = [np.argsort(-(rows @ query))[:TOP] for query in queries]
    with tempfile.TemporaryDirectory() as folder:
        found = searchers(rows, Path(folder))
        times: dict[str, list[float]] = {name: [] for name in found}
        right = dict.fromkeys(found, 0)
        for query, want in zip(queries, true, strict=True):
            for name, (look, _) in found.items():
                began_s = time.perf_counter()
                got = look(query)
                times[name].append(time.perf_counter() - began_s)
                right[name] += len(set(map(int, got)) & set(map(int, want)))
        print(f"{count} vectors of 384, {QUERIES} queries in turn, the {TOP} nearest")
        for name, (_, size) in found.items():
            print(
                f"  {name:14} p50 {median(times[name]) * 1e3:7.2f} ms  {size / 1e6:6.1f} MB  "
                f"the same rows {right[name] / QUERIES / TOP:.3f}"
            )


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("recall").add_argument("data", type=Path)
    commands.add_parser("speed").add_argument("--rows", type=int, default=100_000)
    given = parser.parse_args()
    if given.command == "recall":
        recall(given.data)
    else:
        speed(given.rows)


if __name__ == "__main__":
    main()
