"""GPT-2 and distilGPT2: Hugging Face's model type "gpt2".

Learned positions, LayerNorm, an MLP without a gate, biases everywhere, the embedding as the head
(Radford et al., "Language Models are Unsupervised Multitask Learners", 2019). Folders store the
matrices of layers transposed, as [inputs, outputs], with q, k and v in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.models.parts.gguf import GgufMap, Weights, layers_value, refuse_others
from slmq.models.parts.head import load_head
from slmq.models.parts.layer_norm import config_activation, load_norm
from slmq.models.parts.values import config_count, config_eps, config_layers, config_value
from slmq.weights.base import Reader
from slmq.weights.rows import Rows

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording


# transformers takes its own names for these, too.
OTHER_NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}


@dataclass(frozen=True)
class Config:
    """What config.json says, checked.

    Attributes
    ----------
    scales : tuple of float
        Of attention scores, by layer.
    """

    vocab_size: int
    hidden_size: int
    inner_size: int
    n_heads: int
    head_dim: int
    max_positions: int
    layer_norm_eps: float
    activation: str
    tied: bool
    scales: tuple[float, ...]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json.

        Raises
        ------
        CheckpointError
            If a value is missing or makes no sense.
        UnsupportedModelError
            For cross attention, or an unknown activation.
        """
        others = {ours: config.get(theirs) for ours, theirs in OTHER_NAMES.items()}
        config = {name: value for name, value in others.items() if value is not None} | dict(config)
        hidden, heads = config_count(config, "n_embd"), config_count(config, "n_head")
        if hidden % heads != 0:
            raise CheckpointError(
                f"expected n_embd to be a multiple of n_head, found {hidden} and {heads}"
            )
        if config.get("add_cross_attention"):
            raise UnsupportedModelError("cross attention is not supported")
        scaled = config_value(config, "scale_attn_weights", bool, True)
        scale = float(hidden // heads) ** -0.5 if scaled else 1.0
        by_layer = config_value(config, "scale_attn_by_inverse_layer_idx", bool, False)
        return cls(
            vocab_size=config_count(config, "vocab_size"),
            hidden_size=hidden,
            inner_size=config_count(config, "n_inner", 4 * hidden),
            n_heads=heads,
            head_dim=hidden // heads,
            max_positions=config_count(config, "n_positions"),
            layer_norm_eps=config_eps(config, "layer_norm_epsilon", 1e-5),
            activation=config_activation(config, "activation_function", "gelu_new"),
            tied=config_value(config, "tie_word_embeddings", bool, True),
            scales=tuple(
                scale / (i + 1) if by_layer else scale
                for i in range(config_layers(config, "n_layer"))
            ),
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""
    hidden, inner = cfg.hidden_size, cfg.inner_size

    def linear(name: str, n: int, k: int, first: int, stored: int) -> Any:
        rows = Rows(first, stored, transposed=True)
        return r.linear(f"{name}.weight", n, k, bias=r.bias(f"{name}.bias", True), rows=rows)

    w = Weights()
    w.embed = r.linear("transformer.wte.weight", cfg.vocab_size, hidden)
    w.positions = r.linear("transformer.wpe.weight", cfg.max_positions, hidden, floats=True)
    w.layers = []
    for i in range(len(cfg.scales)):
        name, layer = f"transformer.h.{i}", Weights()
        layer.attn_norm = load_norm(r, f"{name}.ln_1", hidden)
        qkv = f"{name}.attn.c_attn"
        layer.q = linear(qkv, hidden, hidden, 0, 3 * hidden)
        layer.k = linear(qkv, hidden, hidden, hidden, 3 * hidden)
        layer.v = linear(qkv, hidden, hidden, 2 * hidden, 3 * hidden)
        layer.o = linear(f"{name}.attn.c_proj", hidden, hidden, 0, hidden)
        layer.mlp_norm = load_norm(r, f"{name}.ln_2", hidden)
        layer.up = linear(f"{name}.mlp.c_fc", inner, hidden, 0, inner)
        layer.down = linear(f"{name}.mlp.c_proj", hidden, inner, 0, hidden)
        w.layers.append(layer)
    w.norm = load_norm(r, "transformer.ln_f", hidden)
    w.lm_head = load_head(r, cfg, w.embed, embed_name="transformer.wte")
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    eps = cfg.layer_norm_eps
    x = p.embed(w.embed, positions=w.positions)  # f32[m, hidden]
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.layernorm(x, layer.attn_norm, eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            a = p.attention(q, k, v, head_dim=cfg.head_dim, scale=cfg.scales[i])
            x = p.linear(a, layer.o, add=x)
            h = p.layernorm(x, layer.mlp_norm, eps)
            x = p.linear(p.linear(h, layer.up, activation=cfg.activation), layer.down, add=x)
    return p.linear(p.layernorm(p.select(x), w.norm, eps), w.lm_head)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "gpt2" as a Hugging Face configuration."""
    refuse_others(metadata, "gpt2")
    embed = tensors.get("token_embd.weight")
    return {
        "vocab_size": None if embed is None else embed.shape[0],
        "n_embd": config_count(metadata, "gpt2.embedding_length"),
        "n_inner": layers_value(metadata, "gpt2.feed_forward_length"),
        "n_layer": config_layers(metadata, "gpt2.block_count"),
        "n_head": layers_value(metadata, "gpt2.attention.head_count"),
        "n_positions": config_count(metadata, "gpt2.context_length"),
        "layer_norm_epsilon": config_eps(metadata, "gpt2.attention.layer_norm_epsilon"),
        "tie_word_embeddings": "output.weight" not in tensors,
    }


GGUF = GgufMap(
    architecture="gpt2",
    config=config_from_gguf,
    names={
        "transformer.wte": "token_embd",
        "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm",
        "lm_head": "output",
    },
    layers="transformer.h",
    layer_names={
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
)
