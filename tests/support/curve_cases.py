"""The runs whose losses PyTorch, with PEFT, has computed: see make_training_goldens.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from golden import GOLDENS

FILE = GOLDENS / "training" / "curves.json"
STEPS = 50
Batch = tuple[list[list[int]], list[int]]  # texts, and where their targets begin


@dataclass(frozen=True)
class Curve:
    """A run: a family's tiny model in a format, and how it is trained."""

    family: str
    format: str
    rate: float = 1e-2
    options: dict[str, Any] = field(default_factory=lambda: {"rank": 4, "alpha": 8.0})

    @property
    def name(self) -> str:
        return f"{self.family} {'full' if self.full else self.format}"

    @property
    def full(self) -> bool:
        """Whether all weights are trained."""
        return self.options.get("type") == "full"


CURVES = (
    Curve("llama", "f32"),
    Curve("llama", "int4"),
    Curve("qwen3", "int8"),
    Curve("gemma2", "f32"),
    Curve("stablelm", "f32"),
    Curve("llama", "f32", 1e-3, {"type": "full"}),
    Curve("gemma2", "f32", 1e-3, {"type": "full"}),
    Curve("gpt2", "f32", 1e-3, {"type": "full"}),
)


def batches(case: Curve) -> Iterator[Batch]:
    """Texts of a few words that come again and again, so that there is something to learn."""
    rng = np.random.default_rng(7)
    words = [rng.integers(1, 45, int(rng.integers(2, 6))).tolist() for _ in range(6)]
    for _ in range(STEPS):
        texts = []
        for _ in range(3):
            chosen = rng.integers(len(words), size=int(rng.integers(3, 7)))
            texts.append([token for i in chosen for token in words[i]])
        yield texts, [int(rng.integers(1, 5)) for _ in texts]
