"""A router on held-out subjects: cost against accuracy, and the time of a decision.

    python benchmarks/router.py quality DATA [--vectors FILE]
    python benchmarks/router.py speed

DATA holds routellm/mmlu_train_subjects.jsonl: prompts of 40 subjects with whether a weak and a
strong model were right. Heads are trained on three quarters of the subjects (or prompts), and the
others are routed: the share of prompts that go to the strong model against the accuracy of all
answers. PGR is the part of the gap between weak and strong that is closed, APGR its mean over all
shares. Beside the heads: chance, the length of the prompt alone, and the oracle, which knows who is
right. `--vectors` keeps the columns between runs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import slmq
from slmq.embedding.routing.heads import load_heads, vector_of
from slmq.embedding.routing.training import columns_of, fitted_head

ENCODER = "all-minilm-l6-v2"
SPLITS = 4
KEPT = 0.95


def likely_right(x: Any, y: Any, train: Any) -> Any:
    """The chance to be right of rows, from a head that was trained on some of them."""
    weights, bias, _ = fitted_head(x[train], y[train], 2)
    logits = x @ (weights[1] - weights[0]) + (bias[1] - bias[0])
    return 1 / (1 + np.exp(-logits))


def curve(gain: Any, weak: Any, strong: Any) -> Any:
    """Accuracy with the first 0, 1, ... of all prompts, by gain, going to the strong model."""
    order = np.argsort(-gain, kind="stable")
    steps = (strong.astype(float) - weak.astype(float))[order]
    return (weak.sum() + np.concatenate([[0], np.cumsum(steps)])) / len(weak)


def told(name: str, accuracy: Any) -> str:
    """A line about a curve."""
    weak, strong = accuracy[0], accuracy[-1]
    shares = np.linspace(0, 1, len(accuracy))
    pgr = (accuracy - weak) / (strong - weak)
    enough = int(np.argmax(accuracy >= KEPT * strong))
    at = "  ".join(f"{accuracy[int(s * (len(accuracy) - 1))]:.3f}" for s in (0.2, 0.4, 0.6, 0.8))
    half = int(np.argmax(pgr >= 0.5))
    most = int(np.argmax(pgr >= 0.8))
    return (
        f"  {name:12} APGR {pgr.mean():.3f}  at 20/40/60/80% strong: {at}  "
        f"CPT(50) {shares[half]:.0%}  CPT(80) {shares[most]:.0%}  "
        f"saved at {KEPT:.0%} of the strong one: {1 - shares[enough]:.0%}"
    )


def quality(data: Path, kept: Path | None) -> None:
    """Print curves for splits by subject and by prompt."""
    # No splitlines: prompts hold characters at which that cuts, too.
    lines = (data / "routellm/mmlu_train_subjects.jsonl").read_text("utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    texts = [row["prompt"] for row in rows]
    if kept is not None and kept.exists():
        x = np.load(kept)
    else:
        with slmq.load_encoder(ENCODER) as encoder:
            x = columns_of(encoder, texts)
        if kept is not None:
            np.save(kept, x)
    weak, strong = (np.array([row[k] for row in rows]) for k in ("weak_right", "strong_right"))
    subjects = np.unique([row["subject"] for row in rows], return_inverse=True)[1]
    lengths = np.array([len(text) for text in texts], float)
    rng = np.random.default_rng(0)
    dealt = rng.permutation(subjects.max() + 1) % SPLITS
    splits = {"subjects": dealt[subjects], "prompts": rng.integers(0, SPLITS, len(rows))}
    for name, parts in splits.items():
        gains = {k: np.zeros(len(rows)) for k in ("heads", "weak head")}
        for part in range(SPLITS):
            train = parts != part
            p_weak, p_strong = (likely_right(x, y.astype(np.int64), train) for y in (weak, strong))
            gains["heads"][~train] = (np.maximum(p_strong, p_weak) - p_weak)[~train]
            gains["weak head"][~train] = (1 - p_weak)[~train]
        gains["length"] = lengths
        gains["chance"] = rng.random(len(rows))
        gains["oracle"] = strong.astype(float) - weak.astype(float)
        print(f"held-out {name}: weak {weak.mean():.3f}, strong {strong.mean():.3f}, {len(rows)}")
        for kind, gain in gains.items():
            print(told(kind, curve(gain, weak, strong)), flush=True)


def speed() -> None:
    """Print the time of a decision for prompts of about 20, 100 and 250 tokens."""
    heads = load_heads()
    sentence = "Explain how the price of bread depends on the harvest of wheat in a dry year. "
    with slmq.load_encoder(heads.encoder) as encoder:
        for times in (1, 6, 15):
            text = sentence * times
            tokens = len(encoder.tokenizer.encode(text))
            took = []
            for _ in range(60):
                began_s = time.perf_counter()
                heads.labels(text, vector_of(encoder, text))
                took.append(time.perf_counter() - began_s)
            print(f"{tokens} tokens: p50 {median(took) * 1e3:.2f} ms")


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measured = commands.add_parser("quality")
    measured.add_argument("data", type=Path)
    measured.add_argument("--vectors", type=Path)
    commands.add_parser("speed")
    given = parser.parse_args()
    if given.command == "speed":
        speed()
    else:
        quality(given.data, given.vectors)


if __name__ == "__main__":
    main()
