"""Rope frequencies from a configuration, with their scalings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.exact import exact_pow
from slmq.weights import config_value

LARGEST_HEAD = 65536
TWO_PI = 6.283185307179586


@dataclass(frozen=True)
class RopeFrequencies:
    """Rotate-half rope: angle i of position p is p * frequencies[i].

    Attributes
    ----------
    frequencies : float32[rotary / 2]
    factor : float
        Multiplies sines and cosines.
    """

    frequencies: npt.NDArray[np.float32]
    factor: float = 1.0


def rope_frequencies(config: Mapping[str, Any], head_dim: int) -> RopeFrequencies:
    """The frequencies that a Hugging Face configuration asks for.

    Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before). Types
    default, linear (Chen et al., 2023) and llama3 (Llama 3.1).

    Raises
    ------
    UnsupportedModelError
        For another scaling type.
    """
    if not 2 <= head_dim <= LARGEST_HEAD or head_dim % 2 != 0:
        raise CheckpointError(f"expected an even head_dim up to {LARGEST_HEAD}, found {head_dim}")
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise CheckpointError(f"expected rope scaling as an object, found {scaling!r}")
    top_level = config_value(config, "rope_theta", float, 10000.0)
    base = config_value(scaling, "rope_theta", float, top_level)
    if not 0 < base < float("inf"):
        raise CheckpointError(f"expected a finite rope_theta > 0, found {base}")
    plain = [1.0 / exact_pow(base, 2 * i / head_dim) for i in range(head_dim // 2)]
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        scaled = plain
    elif kind == "linear":
        factor = _positive(scaling, "factor")
        scaled = [f / factor for f in plain]
    elif kind == "llama3":
        scaled = _llama3(plain, scaling)
    else:
        raise UnsupportedModelError(
            f"rope scaling {kind!r} is not supported; supported are default, linear and llama3"
        )
    return RopeFrequencies(np.array(scaled, dtype=np.float32))


def rope_from_gguf(metadata: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Rope keys of GGUF metadata as a Hugging Face configuration."""
    prefix = f"{architecture}.rope"
    kind = config_value(metadata, f"{prefix}.scaling.type", str, "none")
    scaling: dict[str, Any] = {}
    if kind != "none":
        scaling = {"rope_type": kind, "factor": metadata.get(f"{prefix}.scaling.factor")}
    return {
        "rope_theta": config_value(metadata, f"{prefix}.freq_base", float, 10000.0),
        "rope_scaling": scaling,
    }


def _positive(scaling: Mapping[str, Any], key: str) -> float:
    value: float = config_value(scaling, key, float)
    if not 0 < value < float("inf"):
        raise CheckpointError(f"expected a finite rope scaling {key} > 0, found {value}")
    return value


def _llama3(plain: list[float], scaling: Mapping[str, Any]) -> list[float]:
    """Low frequencies divided by the factor, high ones kept, a ramp between (Llama 3.1)."""
    factor = _positive(scaling, "factor")
    low, high = _positive(scaling, "low_freq_factor"), _positive(scaling, "high_freq_factor")
    original = _positive(scaling, "original_max_position_embeddings")
    if not high > low:
        raise CheckpointError(
            f"expected high_freq_factor > low_freq_factor, found {high} and {low}"
        )
    scaled = []
    for frequency in plain:
        turns = original * frequency / TWO_PI  # within the original context
        if turns < low:
            scaled.append(frequency / factor)
        elif turns > high:
            scaled.append(frequency)
        else:
            smooth = (turns - low) / (high - low)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return scaled
