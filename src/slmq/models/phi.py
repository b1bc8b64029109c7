"""Phi-1, Phi-1.5 and Phi-2: Hugging Face's model type "phi".

Attention and an MLP without a gate beside each other, both behind one LayerNorm; rope on a share of
a head's channels; biases everywhere, also of the head (Li et al., "Textbooks Are All You Need II:
phi-1.5 technical report", 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.parts.config import DecoderSizes, decoder_sizes
from slmq.models.parts.gguf import GgufMap, Weights, sizes_from_gguf
from slmq.models.parts.head import load_head
from slmq.models.parts.layer_norm import config_activation, load_norm, repeated
from slmq.models.parts.values import config_eps, config_value
from slmq.weights.base import Reader
from slmq.weights.rows import Rows

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording


@dataclass(frozen=True)
class Config(DecoderSizes):
    """What config.json says, checked."""

    layer_norm_eps: float
    activation: str
    qk_norms: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_sizes` and `config_activation`."""
        return cls(
            **decoder_sizes({"partial_rotary_factor": 0.5} | dict(config)),
            layer_norm_eps=config_eps(config, "layer_norm_eps", 1e-5),
            activation=config_activation(config, "hidden_act", "gelu_new"),
            qk_norms=config_value(config, "qk_layernorm", bool, False),
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""
    hidden, inner, q, kv = cfg.hidden_size, cfg.intermediate_size, cfg.q_size, cfg.kv_size

    def linear(name: str, n: int, k: int, rows: Rows | None = None) -> Any:
        return r.linear(f"{name}.weight", n, k, bias=r.bias(f"{name}.bias", True), rows=rows)

    def load_qkv(name: str, layer: Weights) -> None:
        # Early GGUF files have one matrix.
        fused, all_rows = f"{name}.qkv_proj", q + 2 * kv
        if r.layout.gguf_tensors and r.has(f"{fused}.weight"):
            layer.q = linear(fused, q, hidden, Rows(0, all_rows))
            layer.k = linear(fused, kv, hidden, Rows(q, all_rows))
            layer.v = linear(fused, kv, hidden, Rows(q + kv, all_rows))
        else:
            layer.q = linear(f"{name}.q_proj", q, hidden)
            layer.k = linear(f"{name}.k_proj", kv, hidden)
            layer.v = linear(f"{name}.v_proj", kv, hidden)

    w = Weights()
    w.rope = cfg.rope
    w.embed = r.linear("model.embed_tokens.weight", cfg.vocab_size, hidden)
    w.layers = []
    for i in range(cfg.n_layers):
        name, layer = f"model.layers.{i}", Weights()
        layer.norm = load_norm(r, f"{name}.input_layernorm", hidden)
        load_qkv(f"{name}.self_attn", layer)
        if cfg.qk_norms:
            q_norm = load_norm(r, f"{name}.self_attn.q_layernorm", cfg.head_dim)
            k_norm = load_norm(r, f"{name}.self_attn.k_layernorm", cfg.head_dim)
            layer.q_norm = repeated(q_norm, cfg.n_heads)
            layer.k_norm = repeated(k_norm, cfg.n_kv_heads)
        layer.o = linear(f"{name}.self_attn.dense", hidden, q)
        layer.up = linear(f"{name}.mlp.fc1", inner, hidden)
        layer.down = linear(f"{name}.mlp.fc2", hidden, inner)
        w.layers.append(layer)
    w.norm = load_norm(r, "model.final_layernorm", hidden)
    w.lm_head = load_head(r, cfg, w.embed, embed_name="model.embed_tokens", biased=True)
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    eps, head_dim = cfg.layer_norm_eps, cfg.head_dim
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.layernorm(x, layer.norm, eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            if cfg.qk_norms:
                q = p.layernorm(q, layer.q_norm, eps, head_dim)
                k = p.layernorm(k, layer.k_norm, eps, head_dim)
            a = p.attention(q, k, v, head_dim=head_dim, rope=rope)
            x = p.linear(a, layer.o, add=x)
            x = p.linear(p.linear(h, layer.up, activation=cfg.activation), layer.down, add=x)
    return p.linear(p.layernorm(p.select(x), w.norm, eps), w.lm_head)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "phi2" as a Hugging Face configuration."""
    return sizes_from_gguf(metadata, tensors, "phi2") | {
        "layer_norm_eps": config_eps(metadata, "phi2.attention.layer_norm_epsilon"),
    }


GGUF = GgufMap(
    architecture="phi2",
    config=config_from_gguf,
    names={
        "model.embed_tokens": "token_embd",
        "model.final_layernorm": "output_norm",
        "lm_head": "output",
    },
    layer_names={
        "input_layernorm": "attn_norm",
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.dense": "attn_output",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
    },
)
