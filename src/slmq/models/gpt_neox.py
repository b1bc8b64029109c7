"""GPT-NeoX: Pythia, rinna's Japanese models and others of Hugging Face's model type "gpt_neox".

LayerNorm, rope on a share of a head's channels, an MLP without a gate, and attention and MLP beside
each other: both read the layer's input, and their results are added to it (Black et al.,
"GPT-NeoX-20B: An Open-Source Autoregressive Language Model", 2022). Folders store q, k and v of one
head together, then those of the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.parts.config import DecoderSizes, decoder_sizes
from slmq.models.parts.gguf import GgufMap, Weights, any_bias, sizes_from_gguf
from slmq.models.parts.head import load_head
from slmq.models.parts.layer_norm import config_activation, load_norm
from slmq.models.parts.rope import BASES, SHARES
from slmq.models.parts.values import config_eps, config_number, config_value
from slmq.weights.base import Reader
from slmq.weights.rows import Rows

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording


@dataclass(frozen=True)
class Config(DecoderSizes):
    """What config.json says, checked.

    Attributes
    ----------
    parallel : bool
        Whether the MLP reads the layer's input, and not what attention made of it.
    """

    layer_norm_eps: float
    activation: str
    attention_bias: bool
    parallel: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_sizes` and `config_activation`."""
        # What the published files call them counts before the names that other families have.
        own = {}
        if config.get("rotary_pct") is not None:
            own["partial_rotary_factor"] = config_number(config, "rotary_pct", *SHARES)
        if config.get("rotary_emb_base") is not None:
            own["rope_theta"] = config_number(config, "rotary_emb_base", *BASES)
        return cls(
            **decoder_sizes({"partial_rotary_factor": 0.25} | dict(config) | own),
            layer_norm_eps=config_eps(config, "layer_norm_eps", 1e-5),
            activation=config_activation(config, "hidden_act", "gelu"),
            attention_bias=config_value(config, "attention_bias", bool, True),
            parallel=config_value(config, "use_parallel_residual", bool, True),
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""
    hidden, inner, q = cfg.hidden_size, cfg.intermediate_size, cfg.q_size

    def linear(name: str, n: int, k: int, biased: bool = True, rows: Rows | None = None) -> Any:
        bias = r.bias(f"{name}.bias", biased)
        return r.linear(f"{name}.weight", n, k, bias=bias, rows=rows)

    w = Weights()
    w.rope = cfg.rope
    w.embed = r.linear("gpt_neox.embed_in.weight", cfg.vocab_size, hidden)
    w.layers = []
    for i in range(cfg.n_layers):
        name, layer = f"gpt_neox.layers.{i}", Weights()
        layer.attn_norm = load_norm(r, f"{name}.input_layernorm", hidden)
        layer.q, layer.k, layer.v = (
            linear(
                f"{name}.attention.query_key_value",
                q,
                hidden,
                cfg.attention_bias,
                Rows(part * q, 3 * q, heads=cfg.n_heads),
            )
            for part in range(3)
        )
        layer.o = linear(f"{name}.attention.dense", hidden, q, cfg.attention_bias)
        layer.mlp_norm = load_norm(r, f"{name}.post_attention_layernorm", hidden)
        layer.up = linear(f"{name}.mlp.dense_h_to_4h", inner, hidden)
        layer.down = linear(f"{name}.mlp.dense_4h_to_h", hidden, inner)
        w.layers.append(layer)
    w.norm = load_norm(r, "gpt_neox.final_layer_norm", hidden)
    head = "embed_out" if r.has("embed_out.weight") else "lm_head"
    w.lm_head = load_head(r, cfg, w.embed, embed_name="gpt_neox.embed_in", head=head)
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    eps = cfg.layer_norm_eps
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.layernorm(x, layer.attn_norm, eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope)
            y = p.linear(a, layer.o, add=x)
            h = p.layernorm(x if cfg.parallel else y, layer.mlp_norm, eps)
            x = p.linear(p.linear(h, layer.up, activation=cfg.activation), layer.down, add=y)
    return p.linear(p.layernorm(p.select(x), w.norm, eps), w.lm_head)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "gptneox" as a Hugging Face configuration."""
    return sizes_from_gguf(metadata, tensors, "gptneox") | {
        "layer_norm_eps": config_eps(metadata, "gptneox.attention.layer_norm_epsilon"),
        "use_parallel_residual": config_value(
            metadata, "gptneox.use_parallel_residual", bool, True
        ),
        "attention_bias": any_bias(tensors, "attn_qkv", "attn_output"),
    }


GGUF = GgufMap(
    architecture="gptneox",
    config=config_from_gguf,
    names={
        "gpt_neox.embed_in": "token_embd",
        "gpt_neox.final_layer_norm": "output_norm",
        "embed_out": "output",
    },
    layers="gpt_neox.layers",
    layer_names={
        "input_layernorm": "attn_norm",
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
)
