"""How well vectors of sentences agree with people: STS-B and JSTS, beside sentence-transformers.

    python benchmarks/encoder_quality.py MODEL FILE [--formats f32,int8,int4] [--peer]

FILE is test.tsv of STS-B (score, sentence, sentence) or valid-v1.3.json of JSTS. It prints
Spearman's rank correlation of cosines and scores, with the mean cosine of each format's vectors to
float32's.
`--peer` adds sentence-transformers, which must be installed with torch.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import slmq
from slmq import hub

F64 = npt.NDArray[np.float64]


def pairs_of(path: Path) -> tuple[list[str], list[str], F64]:
    """First and second sentences, and the scores that people gave."""
    lines = path.read_text("utf-8").splitlines()
    if path.suffix == ".json":
        rows = [json.loads(line) for line in lines if line.strip()]
        found = [(row["label"], row["sentence1"], row["sentence2"]) for row in rows]
    else:
        cut = [line.split("\t") for line in lines if line.strip()]
        found = [(float(score), one, other) for score, one, other, *_ in cut]
    scores, first, second = zip(*found, strict=True)
    return list(first), list(second), np.array(scores, np.float64)


def ranks(values: F64) -> F64:
    """Ranks, their mean for equal values."""
    order, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)[:3]
    assert len(order) == len(counts)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse])


def spearman(a: F64, b: F64) -> float:
    """Rank correlation."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def cosines(a: Any, b: Any) -> F64:
    """Of rows."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / lengths)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--formats", default="f32,int8,int4")
    parser.add_argument("--peer", action="store_true")
    given = parser.parse_args()
    first, second, scores = pairs_of(given.file)
    exact = None
    for name in given.formats.split(","):
        with slmq.load_encoder(given.model, format=name) as encoder:
            began_s = time.monotonic()
            a = encoder.embed(first, truncate=True)
            b = encoder.embed(second, truncate=True)
            seconds = time.monotonic() - began_s
        exact = a if exact is None else exact
        print(
            f"slmq {name:5} spearman {spearman(cosines(a, b), scores):.4f}  cosine to the first "
            f"{cosines(a, exact).mean():.5f}  {2 * len(first) / seconds:.0f} texts/s",
            flush=True,
        )
    if given.peer:
        from sentence_transformers import SentenceTransformer

        peer = SentenceTransformer(str(hub.resolve(given.model).path), device="cpu")
        began_s = time.monotonic()
        a, b = peer.encode(first), peer.encode(second)
        seconds = time.monotonic() - began_s
        found = spearman(cosines(a, b), scores)
        print(
            f"sentence-transformers float32 spearman {found:.4f}  cosine to the first "
            f"{cosines(a, exact).mean():.5f}  {2 * len(first) / seconds:.0f} texts/s"
        )


if __name__ == "__main__":
    main()
