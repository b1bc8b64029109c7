"""A head on vectors: SST-2, trained on a part of dev, measured on test.

    python benchmarks/heads.py DATA [--encoder NAME]

DATA holds sst2/dev.tsv and sst2/test.tsv (sentence, tab, label). Embedding the training texts is in
the seconds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import slmq

PARTS = (100, 400, 872)


def rows_of(path: Path) -> tuple[list[str], list[str]]:
    """Sentences and labels."""
    pairs = [line.rsplit("\t", 1) for line in path.read_text("utf-8").splitlines() if line]
    return [text for text, _ in pairs], [label for _, label in pairs]


def main() -> None:
    """Train on parts of dev, print accuracies on test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="all-minilm-l6-v2")
    given = parser.parse_args()
    texts, labels = rows_of(given.data / "sst2/dev.tsv")
    tested, wanted = rows_of(given.data / "sst2/test.tsv")
    order = np.random.default_rng(0).permutation(len(texts))
    with slmq.load_encoder(given.encoder) as encoder:
        encoder.embed(texts[:8])
        for part in PARTS:
            some = order[:part]
            began_s = time.perf_counter()
            head = slmq.Head.fit(encoder, [texts[i] for i in some], [labels[i] for i in some])
            took_s = time.perf_counter() - began_s
            found = [best.label for (best,) in head.classify(tested)]
            right = np.mean([a == b for a, b in zip(found, wanted, strict=True)])
            told = head.trained
            print(
                f"{part} texts: {took_s:.1f} s; cross-validated {told.accuracy:.3f} (calibration "
                f"error {told.calibration_error:.3f}); test {right:.3f} of {len(tested)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
