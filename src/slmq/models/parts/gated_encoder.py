"""The layer of encoders that have a norm behind every sum, as BERT, but rope and gated MLPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.parts.encoder import EncoderConfig, load_encoder_norm
from slmq.models.parts.gguf import Weights
from slmq.weights.rows import Rows

if TYPE_CHECKING:
    from slmq.models.parts.rope import Rope
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording
    from slmq.weights.base import Reader

__all__ = ["GATES", "GatedNames", "gated_layers", "load_gated_layers", "typed_embedding"]

GATES = ("gelu", "gelu_tanh", "silu")


@dataclass(frozen=True)
class GatedNames:
    """Names of a layer's modules, behind the layer's own.

    Attributes
    ----------
    qkv : str
        Of queries, keys and values in one matrix.
    q, k, v : str
        Of each by itself.
    gate, up : str
        Of the MLP's two; `gate_up` and `up_gate` of both in one, in this order.
    """

    o: str
    attn_norm: str
    down: str
    mlp_norm: str
    qkv: str = ""
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    up_gate: str = ""


# As transformers names them now.
PLAIN = GatedNames(
    o="self_attn.o_proj",
    attn_norm="post_attention_layernorm",
    down="mlp.down_proj",
    mlp_norm="post_mlp_layernorm",
)


def load_gated_layers(
    r: Reader, cfg: EncoderConfig, layers: str, names: GatedNames
) -> list[Weights]:
    """The layers `<layers>.0` and so on; biases are those that are stored."""
    hidden, inner = cfg.hidden_size, cfg.inner_size
    loaded = []
    for i in range(cfg.n_layers):
        prefix, layer = f"{layers}.{i}", Weights()
        for part, at in (("q", 0), ("k", hidden), ("v", 2 * hidden)):
            whole = Rows(at, 3 * hidden) if names.qkv else None
            name = f"{prefix}.{names.qkv or getattr(names, part)}"
            setattr(layer, part, _matrix(r, name, hidden, hidden, whole))
        for part, at in (("up", 0), ("gate", inner)):
            whole = Rows(at, 2 * inner) if names.up_gate else None
            name = f"{prefix}.{names.up_gate or getattr(names, part)}"
            setattr(layer, part, _matrix(r, name, inner, hidden, whole))
        layer.o = _matrix(r, f"{prefix}.{names.o}", hidden, hidden)
        layer.down = _matrix(r, f"{prefix}.{names.down}", hidden, inner)
        layer.attn_norm = load_encoder_norm(r, f"{prefix}.{names.attn_norm}", hidden)
        layer.mlp_norm = load_encoder_norm(r, f"{prefix}.{names.mlp_norm}", hidden)
        loaded.append(layer)
    return loaded


def _matrix(r: Reader, name: str, n: int, k: int, rows: Rows | None = None) -> Any:
    bias = f"{name}.bias" if r.has(f"{name}.bias") else None
    return r.linear(f"{name}.weight", n, k, bias=bias, rows=rows)


def typed_embedding(p: Recording, w: Weights, cfg: EncoderConfig) -> Handle:
    """The norm of words and types together: float32[m, hidden]."""
    return p.layernorm(p.embed(w.embed, types=w.types), w.embed_norm, cfg.norm_eps)


def gated_layers(
    p: Recording, x: Handle, layers: list[Weights], cfg: EncoderConfig, rope: Rope
) -> Handle:
    """All layers: attention and a gated MLP, each normed with what it is added to."""
    turns = p.rope(*rope.at(p.n_ctx))
    for i, layer in enumerate(layers):
        with p.scope(f"layer {i}"):
            q, k, v = p.linear(x, [layer.q, layer.k, layer.v]).split()
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=turns, causal=False)
            x = p.layernorm(p.linear(a, layer.o, add=x), layer.attn_norm, cfg.norm_eps)
            h = p.gated(x, layer.gate, layer.up, cfg.activation)
            x = p.layernorm(p.linear(h, layer.down, add=x), layer.mlp_norm, cfg.norm_eps)
    return x
