"""The committed goldens: tiny models and the logits that transformers gives for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from places import GOLDENS


@dataclass(frozen=True)
class Golden:
    """One model folder, and two sequences with their float32 logits at every position."""

    folder: Path
    tokens: list[list[int]]
    logits: list[npt.NDArray[np.float32]]  # [m, vocab] each

    @property
    def half_logits(self) -> list[npt.NDArray[np.float32]]:
        """The same with matrices, keys and values in float16: half_goldens.py says how."""
        with np.load(self.folder / "half.npz") as arrays:
            return [x + arrays[f"rounding_{i}"] for i, x in enumerate(self.logits)]

    @property
    def v4_config(self) -> Path | None:
        """The same config in the form of transformers 4, where the case has one."""
        path = self.folder / "config.v4.json"
        return path if path.exists() else None


def golden_names(family: str) -> list[str]:
    """Names of the cases of a model family."""
    return sorted(p.parent.name for p in (GOLDENS / family).glob("*/goldens.npz"))


def read_golden(family: str, name: str) -> Golden:
    """One case by name."""
    folder = GOLDENS / family / name
    with np.load(folder / "goldens.npz") as arrays:
        tokens = [arrays[f"tokens_{i}"].tolist() for i in range(2)]
        logits = [arrays[f"logits_{i}"] for i in range(2)]
    return Golden(folder, tokens, logits)
