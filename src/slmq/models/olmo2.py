"""OLMo 2 and OLMo 3: Hugging Face's model types "olmo2" and "olmo3".

Attention and MLP are normed behind and not in front, and so are queries and keys, over all heads
together (OLMo Team, "2 OLMo 2 Furious", 2025). OLMo 3 has windows in three of four layers, and
there a rope that no scaling touches (Olmo Team, "Olmo 3", 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.parts.config import DecoderConfig, config_window, decoder_values, layer_sliding
from slmq.models.parts.decoder import load_attention, load_decoder, load_gated_mlp, logits
from slmq.models.parts.gguf import (
    ATTENTION_PARTS,
    DECODER_NAMES,
    LAYER_NAMES,
    GgufMap,
    Weights,
    any_bias,
    decoder_from_gguf,
)
from slmq.models.parts.rope import BASES, Rope, rope_of
from slmq.models.parts.values import config_layers, config_number, config_value
from slmq.models.parts.windows import ropes_by_kind, windows_from_gguf
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out: of both, and of OLMo 3.
DEFAULTS = {"rms_norm_eps": 1e-5}
WINDOWS = {"sliding_window": 4096}
BASE3 = 5e5


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked; `rope` is that of layers without a window.

    Attributes
    ----------
    attention_bias : bool
    windows : tuple of int
        Latest positions that a query sees, by layer; 0 for all.
    local_rope : Rope
        That of layers with a window.
    """

    attention_bias: bool
    windows: tuple[int, ...]
    local_rope: Rope

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = DEFAULTS | dict(config)
        layers = config_layers(values)
        windows, near = (0,) * layers, values
        if config.get("model_type") == "olmo3" or config.get("sliding_window") is not None:
            values, near = ropes_by_kind(WINDOWS | values, BASE3, _base(values), "rope_theta_swa")
            sliding = layer_sliding(values, [(i + 1) % 4 != 0 for i in range(layers)])
            windows = tuple(config_window(values) if slides else 0 for slides in sliding)
        fields = decoder_values(values)
        return cls(
            **fields,
            attention_bias=config_value(values, "attention_bias", bool, False),
            windows=windows,
            local_rope=rope_of(near, fields["head_dim"]),
        )


def _base(config: Mapping[str, Any]) -> float:
    """The one `rope_theta` of configurations of transformers 4."""
    return config_number(config, "rope_theta", *BASES, BASE3)


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        load_post_norms(r, cfg, prefix, layer)
        bias = cfg.attention_bias
        load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias)
        layer.q_norm = r.vector(f"{prefix}.self_attn.q_norm.weight", cfg.q_size)
        layer.k_norm = r.vector(f"{prefix}.self_attn.k_norm.weight", cfg.kv_size)
        load_gated_mlp(r, cfg, prefix, layer)

    w = load_decoder(r, cfg, load_layer)
    w.local_rope = cfg.local_rope
    return w


def load_post_norms(r: Reader, cfg: DecoderConfig, prefix: str, layer: Weights) -> None:
    """The norms behind attention and MLP."""
    layer.attn_norm = r.vector(f"{prefix}.post_attention_layernorm.weight", cfg.hidden_size)
    layer.mlp_norm = r.vector(f"{prefix}.post_feedforward_layernorm.weight", cfg.hidden_size)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed)  # f32[m, hidden]
    far, near = p.rope(*w.rope.at(p.n_ctx)), p.rope(*w.local_rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            q, k, v = p.linear(x, [layer.q, layer.k, layer.v]).split()
            q = p.rmsnorm(q, layer.q_norm, cfg.rms_norm_eps)
            k = p.rmsnorm(k, layer.k_norm, cfg.rms_norm_eps)
            window = cfg.windows[i]
            a = p.attention(
                q, k, v, head_dim=cfg.head_dim, rope=near if window else far, window=window
            )
            x = post_normed(p, x, a, layer, cfg.rms_norm_eps)
    return logits(p, x, w, cfg.rms_norm_eps)


def post_normed(p: Recording, x: Handle, a: Handle, layer: Weights, eps: float) -> Handle:
    """The rest of a layer behind its attention `a`: x + norm(o(a)), and + norm(mlp) of that."""
    x = p.rmsnorm(p.linear(a, layer.o), layer.attn_norm, eps, add=x)
    y = p.linear(p.gated(x, layer.gate, layer.up, "silu"), layer.down)
    return p.rmsnorm(y, layer.mlp_norm, eps, add=x)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "olmo2", which is OLMo 3's, too, as a configuration."""
    config = decoder_from_gguf(metadata, tensors, "olmo2") | windows_from_gguf(metadata, "olmo2")
    return config | {"attention_bias": any_bias(tensors, *ATTENTION_PARTS)}


POST_NORMED = {
    name: stored for name, stored in LAYER_NAMES.items() if not name.endswith("layernorm")
} | {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}

GGUF = GgufMap(
    architecture="olmo2",
    config=config_from_gguf,
    names=DECODER_NAMES,
    layer_names=POST_NORMED,
)
