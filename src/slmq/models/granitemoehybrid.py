"""Granite 4's dense models: Hugging Face's model type "granitemoehybrid" without experts.

Granites whose gate and up are one matrix and whose layers may have no rope. The type also stands
for mixtures of experts and for Mamba 2 layers, which are not supported. In GGUF files dense ones
are plain Granites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slmq.errors import UnsupportedModelError
from slmq.models import granite
from slmq.models.granite import granite_values, load_granite
from slmq.models.parts.gguf import Weights
from slmq.models.parts.values import config_count, config_value
from slmq.weights.base import Reader
from slmq.weights.rows import Rows

ATTENTION = ("attention", "full_attention")
EXPERTS = 8  # that a configuration has unless it says otherwise


@dataclass(frozen=True)
class Config(granite.Config):
    """What config.json says, checked."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        _check_dense(config)
        width = config_count(config, "shared_intermediate_size", 1024)
        return cls(**granite_values(dict(config) | {"intermediate_size": width}))


def _check_dense(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError for layers of another kind than attention and one MLP."""
    experts = config_count(config, "num_local_experts", EXPERTS, low=0)
    if experts > 0:
        raise UnsupportedModelError(f"a mixture of {experts} experts is not supported")
    kinds = config_value(config, "layer_types", list, [])
    others = sorted({f"{kind!r:.40}" for kind in kinds if kind not in ATTENTION})
    if others or not kinds:
        raise UnsupportedModelError(
            f"layers with a Mamba 2 state are not supported, expected layer_types of "
            f"{' or '.join(ATTENTION)}, found {', '.join(others) or 'none'}"
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""
    inner, hidden = cfg.intermediate_size, cfg.hidden_size

    def load_mlp(prefix: str, layer: Weights) -> None:
        name = f"{prefix}.shared_mlp"
        fused, down = f"{name}.input_linear.weight", f"{name}.output_linear.weight"
        layer.gate = r.linear(fused, inner, hidden, rows=Rows(0, 2 * inner))
        layer.up = r.linear(fused, inner, hidden, rows=Rows(inner, 2 * inner))
        layer.down = r.linear(down, hidden, inner)

    return load_granite(r, cfg, load_mlp)


forward = granite.forward
GGUF = granite.GGUF
