"""stories260K, quantized every way: perplexity on TinyStories that no calibration has seen.

Stories 0 to 99 calibrate, 500 to 799 are scored: each from BOS, every token given all before it.

    python benchmarks/quantize_stories.py [--threads 2] [--bits 4.5 4.75 5 5.5 6 7]
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import slmq
from slmq.engine.engine import Engine
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.evaluation.likelihood import log_probabilities
from slmq.settings import WeightFormat

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
stories: Any = importlib.import_module("stories")

LONGEST = 512


def perplexity(
    model: Path, texts: list[str], threads: int, format: WeightFormat | None = None
) -> float:
    """exp of the mean negative log-probability of every token after the first of a text."""
    engine = open_engine(model, LoadOptions(format=format, n_threads=threads, kv_dtype="f32"))
    scores = np.concatenate([score(engine, text) for text in texts])
    engine.close()
    return math.exp(-float(scores.mean()))


def score(engine: Engine, text: str) -> npt.NDArray[np.float64]:
    """Log-probabilities of the tokens of one text."""
    ids = engine.tokenizer.encode(text, add_special=True)[:LONGEST]
    sequence = engine.sequence()
    logits = engine.feed(sequence, ids[:-1], logits="all")
    sequence.close()
    return log_probabilities(logits, np.array(ids[1:]))


def settings(bits: list[float], text: Path) -> list[tuple[str, dict[str, Any]]]:
    """What is measured, with the arguments of `slmq.quantize`."""
    found: list[tuple[str, dict[str, Any]]] = [("int8", {"format": "int8"})]
    for fmt in ("q4g32s", "q4g32a"):
        found.append((f"{fmt} rtn", {"format": fmt, "method": "rtn"}))
        found += [
            (f"{fmt} {method}", {"format": fmt, "method": method, "calibrate": text})
            for method in ("weighted", "feedback", "auto")
        ]
    found += [(f"mixed, {b:g} bits", {"bits": b, "calibrate": text}) for b in bits]
    return found


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bits", type=float, nargs="+", default=[4.5, 4.75, 5, 5.5, 6, 7])
    options = parser.parse_args()
    texts = stories.tinystories(800)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = stories.convert(folder / "stories260k")
        text = folder / "text.txt"
        text.write_text("\n".join(texts[:100]), "utf-8")
        exact = perplexity(source, texts[500:], options.threads, "f32")
        print("| | bits per weight | perplexity | over f32 |\n|---|---|---|---|")
        print(f"| f32 | 32 | {exact:.4f} | |", flush=True)
        for label, arguments in settings(options.bits, text):
            made = slmq.quantize(
                source, folder / "q", force=True, n_threads=options.threads, **arguments
            )
            found = perplexity(made.path, texts[500:], options.threads)
            more = f"{100 * (found / exact - 1):+.2f}%"
            print(f"| {label} | {made.bits_per_weight:.3f} | {found:.4f} | {more} |", flush=True)


if __name__ == "__main__":
    main()
