"""The committed goldens of encoders, and tiny encoders opened without a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from places import GOLDENS

from slmq.checkpoint import open_checkpoint
from slmq.embedding.folder import SentenceFolder
from slmq.embedding.loading import load_body
from slmq.embedding.options import EncoderOptions
from slmq.embedding.runner import EncodedText, Runner

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EncoderGolden:
    """One folder, two texts, and what transformers makes of them.

    Attributes
    ----------
    texts : list of EncodedText
    states : list of float32[tokens, hidden]
    heads : list of float32[labels] or float32[tokens, labels or vocabulary]
        Empty without a head.
    """

    folder: Path
    texts: list[EncodedText]
    states: list[F32]
    heads: list[F32]


def encoder_names(family: str) -> list[str]:
    """Names of the cases of a family."""
    return sorted(p.parent.name for p in (GOLDENS / family).glob("*/encoder.npz"))


def read_encoder(family: str, name: str) -> EncoderGolden:
    """One case by name."""
    folder = GOLDENS / family / name
    with np.load(folder / "encoder.npz") as arrays:
        texts = [EncodedText(arrays[f"tokens_{i}"], arrays[f"types_{i}"]) for i in range(2)]
        states = [arrays[f"states_{i}"] for i in range(2)]
        heads = [arrays[f"head_{i}"] for i in range(2) if f"head_{i}" in arrays]
    return EncoderGolden(folder, texts, states, heads)


def open_runner(
    path: Path, *, isa: str | None = None, pool: str = "mean", **options: Any
) -> Runner:
    """A folder of weights, ready to run."""
    with open_checkpoint(path) as checkpoint:
        folder = SentenceFolder(path, pool=pool)
        body, _ = load_body(checkpoint, folder, EncoderOptions(**options))
    return Runner(body, isa)
