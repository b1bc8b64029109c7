"""Parts that decoders with LayerNorm have in common, beside those of `blocks`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slmq.errors import UnsupportedModelError
from slmq.models.parts.values import config_value

if TYPE_CHECKING:
    from slmq.weights.base import Reader

F32 = npt.NDArray[np.float32]

# Hugging Face's names of activations, as `Recorder.linear` names them.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class Norm(NamedTuple):
    """Weight and bias of a LayerNorm, float32[n] each."""

    weight: F32
    bias: F32 | None


def load_norm(r: Reader, name: str, size: int) -> Norm:
    """A LayerNorm, whose bias may be missing."""
    bias = r.vector(f"{name}.bias", size) if r.has(f"{name}.bias") else None
    return Norm(r.vector(f"{name}.weight", size), bias)


def repeated(norm: Norm, heads: int) -> Norm:
    """One norm for every head, as `Recorder.layernorm` takes those of heads."""
    bias = None if norm.bias is None else np.tile(norm.bias, heads)
    return Norm(np.tile(norm.weight, heads), bias)


def config_activation(config: Mapping[str, Any], key: str, default: str) -> str:
    """The activation that a configuration names, in the words of `Recorder.linear`.

    Raises
    ------
    UnsupportedModelError
        If there is none of that name.
    """
    name = config_value(config, key, str, default)
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{key} {name!r:.80} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]
