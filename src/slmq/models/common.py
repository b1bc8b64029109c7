"""What model files share: a bag of weights, GGUF name maps, row orders."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt


class Weights(SimpleNamespace):
    """Weights by attribute, as `forward` reads them."""


@dataclass(frozen=True)
class GgufMap:
    """How a GGUF file of one architecture maps to the Hugging Face model.

    Attributes
    ----------
    architecture : str
        The file's `general.architecture`.
    config : callable
        Metadata and tensors to a config.json-like dict.
    names, layer_names : dict
        Hugging Face module name to GGUF name, without `.weight` and `.bias`; of the model and of
        `<layers>.<i>` (GGUF: `blk.<i>`).
    layers : str
    """

    architecture: str
    config: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    names: Mapping[str, str]
    layer_names: Mapping[str, str] = field(default_factory=dict)
    layers: str = "model.layers"

    def name(self, name: str) -> str:
        """The GGUF tensor name of a Hugging Face tensor, or its own if there is none."""
        module, _, kind = name.rpartition(".")
        layer = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", module)
        if layer is None:
            return f"{self.names.get(module, module)}.{kind}"
        return f"blk.{layer[1]}.{self.layer_names[layer[2]]}.{kind}"


def interleaved_to_halves(heads: int, head_dim: int) -> npt.NDArray[np.int32]:
    """Row order that undoes the q/k permutation of llama.cpp's converter.

    GGUF files of the llama architecture store the rows of a head for rope on neighbouring pairs
    (2i, 2i + 1); our rope rotates halves (i, i + head_dim / 2), as the original weights do.
    """
    rows = np.arange(heads * head_dim, dtype=np.int32).reshape(heads, head_dim // 2, 2)
    return np.ascontiguousarray(rows.transpose(0, 2, 1).reshape(-1))
