"""Llama 2 and 3, TinyLlama, SmolLM2, Orca-2 and others of Hugging Face's model type "llama".

Touvron et al., "LLaMA", 2023; Grattafiori et al., "The Llama 3 Herd of Models", 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import CheckpointError
from slmq.models.common import GgufMap, Weights, interleaved_to_halves
from slmq.models.rope import RopeFrequencies, rope_frequencies, rope_from_gguf
from slmq.weights import LARGEST_SIZE, WeightReader, config_count, config_value

if TYPE_CHECKING:
    from slmq.trace import Handle, Recorder


@dataclass(frozen=True)
class Config:
    """What config.json says, checked."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_positions: int
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    rope: RopeFrequencies

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json.

        Raises
        ------
        CheckpointError
            If a value is missing or has another type.
        UnsupportedModelError
            If the configuration asks for something that this family lacks.
        """
        hidden = config_count(config, "hidden_size")
        heads = config_count(config, "num_attention_heads")
        kv_heads = config_count(config, "num_key_value_heads", heads)
        if heads % kv_heads != 0:
            raise CheckpointError(
                f"expected num_attention_heads to be a multiple of num_key_value_heads, "
                f"found {heads} and {kv_heads}"
            )
        head_dim = config_count(config, "head_dim", hidden // heads)
        if heads * head_dim > LARGEST_SIZE:
            raise CheckpointError(f"expected a sane model, found {heads} heads of {head_dim}")
        eps = config_value(config, "rms_norm_eps", float, 1e-6)
        if not 0 <= eps < 1:
            raise CheckpointError(f"expected rms_norm_eps within 0..1, found {eps}")
        return cls(
            vocab_size=config_count(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=config_count(config, "intermediate_size"),
            n_layers=config_count(config, "num_hidden_layers"),
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=eps,
            max_positions=config_count(config, "max_position_embeddings", 2048),
            tied=config_value(config, "tie_word_embeddings", bool, False),
            attention_bias=config_value(config, "attention_bias", bool, False),
            mlp_bias=config_value(config, "mlp_bias", bool, False),
            rope=rope_frequencies(config, head_dim),
        )


def load(r: WeightReader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""
    gguf = r.checkpoint.kind == "gguf"
    q_order = interleaved_to_halves(cfg.n_heads, cfg.head_dim) if gguf else None
    k_order = interleaved_to_halves(cfg.n_kv_heads, cfg.head_dim) if gguf else None
    q_size, kv_size = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim

    def linear(name: str, n: int, k: int, biased: bool, order: Any = None) -> Any:
        return r.linear(
            f"{name}.weight", n, k, bias=f"{name}.bias" if biased else None, order=order
        )

    w = Weights()
    # Llama 3's scaling reaches GGUF files, and folders made of them, as divisors of frequencies.
    w.rope = cfg.rope.frequencies
    if r.checkpoint.kind != "safetensors" and r.has("rope_freqs.weight"):
        w.rope = w.rope / r.vector("rope_freqs.weight", cfg.head_dim // 2)
    w.embed = r.linear("model.embed_tokens.weight", cfg.vocab_size, cfg.hidden_size)
    w.layers = []
    for i in range(cfg.n_layers):
        prefix, layer = f"model.layers.{i}", Weights()
        hidden, inner = cfg.hidden_size, cfg.intermediate_size
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        layer.attn_norm = r.vector(f"{prefix}.input_layernorm.weight", hidden)
        layer.q = linear(f"{attention}.q_proj", q_size, hidden, cfg.attention_bias, q_order)
        layer.k = linear(f"{attention}.k_proj", kv_size, hidden, cfg.attention_bias, k_order)
        layer.v = linear(f"{attention}.v_proj", kv_size, hidden, cfg.attention_bias)
        layer.o = linear(f"{attention}.o_proj", hidden, q_size, cfg.attention_bias)
        layer.mlp_norm = r.vector(f"{prefix}.post_attention_layernorm.weight", hidden)
        layer.gate = linear(f"{mlp}.gate_proj", inner, hidden, cfg.mlp_bias)
        layer.up = linear(f"{mlp}.up_proj", inner, hidden, cfg.mlp_bias)
        layer.down = linear(f"{mlp}.down_proj", hidden, inner, cfg.mlp_bias)
        w.layers.append(layer)
    w.norm = r.vector("model.norm.weight", cfg.hidden_size)
    separate = r.has("lm_head.weight") and not cfg.tied
    w.lm_head = r.linear("lm_head.weight", cfg.vocab_size, cfg.hidden_size) if separate else w.embed
    return w


def forward(p: Recorder, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(w.rope, cfg.rope.factor)
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, cfg.rms_norm_eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope)
            x = p.linear(a, layer.o, add=x)
            h = p.rmsnorm(x, layer.mlp_norm, cfg.rms_norm_eps)
            x = p.linear(p.swiglu(h, layer.gate, layer.up), layer.down, add=x)
    x = p.rmsnorm(p.select(x), w.norm, cfg.rms_norm_eps)
    return p.linear(x, w.lm_head)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "llama" as a Hugging Face configuration."""
    a = "llama"
    heads = config_value(metadata, f"{a}.attention.head_count", int)
    hidden = config_value(metadata, f"{a}.embedding_length", int)
    embed = tensors.get("token_embd.weight")
    return {
        "vocab_size": config_value(
            metadata, f"{a}.vocab_size", int, embed.shape[0] if embed is not None else None
        ),
        "hidden_size": hidden,
        "intermediate_size": config_value(metadata, f"{a}.feed_forward_length", int),
        "num_hidden_layers": config_value(metadata, f"{a}.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": config_value(metadata, f"{a}.attention.head_count_kv", int, heads),
        "head_dim": config_value(
            metadata, f"{a}.attention.key_length", int, hidden // max(heads, 1)
        ),
        "rms_norm_eps": config_value(metadata, f"{a}.attention.layer_norm_rms_epsilon", float),
        "max_position_embeddings": config_value(metadata, f"{a}.context_length", int),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        **rope_from_gguf(metadata, a),
    }


GGUF = GgufMap(
    architecture="llama",
    config=config_from_gguf,
    names={
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "rope_freqs": "rope_freqs",
    },
    layer_names={
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
)
