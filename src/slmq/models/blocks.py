"""Parts that decoders have in common: sizes, weights and steps of the usual transformer layer.

A family file takes those that are as its model has them, and writes out what is its own. None of
them asks which family it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.models.common import Weights
from slmq.models.rope import Rope, rope_from_gguf, rope_of
from slmq.weights import LARGEST_SIZE, WeightReader, config_count, config_value

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from slmq.trace import Handle, Recorder

    Order = npt.NDArray[np.int32] | None


@dataclass(frozen=True)
class DecoderSizes:
    """What config.json says of every decoder with rope, checked."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_positions: int
    tied: bool
    rope: Rope

    @property
    def q_size(self) -> int:
        """Channels of all query heads."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Channels of all key heads; values have as many."""
        return self.n_kv_heads * self.head_dim


@dataclass(frozen=True)
class DecoderConfig(DecoderSizes):
    """What config.json says of every decoder with RMSNorm, rope and a gated MLP, checked."""

    rms_norm_eps: float


def decoder_values(config: Mapping[str, Any], activation: str = "silu") -> dict[str, Any]:
    """The fields of `DecoderConfig` from a Hugging Face config.json.

    Raises
    ------
    CheckpointError
        If a value is missing or has another type.
    UnsupportedModelError
        If the configuration asks for something that these blocks lack.
    """
    found = config_value(config, "hidden_act", str, activation)
    if found != activation:
        raise UnsupportedModelError(
            f"hidden_act {found!r:.80} is not supported; supported is {activation}"
        )
    return decoder_sizes(config) | {"rms_norm_eps": config_eps(config, "rms_norm_eps", 1e-6)}


def config_eps(config: Mapping[str, Any], key: str, default: float) -> float:
    """What a norm adds to a variance: a number within 0..1."""
    eps: float = config_value(config, key, float, default)
    if not 0 <= eps < 1:
        raise CheckpointError(f"expected {key} within 0..1, found {eps}")
    return eps


def decoder_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `DecoderSizes` from a Hugging Face config.json; raises as `decoder_values`."""
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
    return {
        "vocab_size": config_count(config, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": config_count(config, "intermediate_size"),
        "n_layers": config_count(config, "num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "head_dim": head_dim,
        "max_positions": config_count(config, "max_position_embeddings", 2048),
        "tied": config_value(config, "tie_word_embeddings", bool, False),
        "rope": rope_of(config, head_dim),
    }


def config_window(config: Mapping[str, Any]) -> int:
    """`sliding_window`: how many latest positions a query sees; 0 for all (null)."""
    if config.get("sliding_window") is None:
        return 0
    return config_count(config, "sliding_window")


def layer_windows(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The window of every layer, 0 for none, where only some have one.

    `layer_types` names them; older configurations have `use_sliding_window`, off by default, and
    `max_window_layers`, the first layer with a window.
    """
    layers = config_count(config, "num_hidden_layers")
    window = config_window(config) if config.get("use_sliding_window") is True else 0
    first = config_value(config, "max_window_layers", int, 28)
    sliding = layer_sliding(config, [i >= first for i in range(layers)])
    return tuple(window if slides else 0 for slides in sliding)


def layer_sliding(config: Mapping[str, Any], default: list[bool]) -> tuple[bool, ...]:
    """Which layers have a window, by `layer_types`; `default` without it.

    Raises
    ------
    CheckpointError
        If there are not as many as layers.
    UnsupportedModelError
        For another type than sliding_attention and full_attention.
    """
    if config.get("layer_types") is None:
        return tuple(default)
    kinds = config_value(config, "layer_types", list)
    if len(kinds) != len(default):
        raise CheckpointError(f"expected {len(default)} layer_types, found {len(kinds)}")
    known = ("full_attention", "sliding_attention")
    for kind in kinds:
        if kind not in known:
            raise UnsupportedModelError(
                f"layer type {kind!r:.80} is not supported; supported are {', '.join(known)}"
            )
    return tuple(kind == "sliding_attention" for kind in kinds)


def load_decoder(
    r: WeightReader,
    cfg: DecoderConfig,
    load_layer: Callable[[str, Weights], None],
    *,
    model: str = "model",
    head: str = "lm_head",
) -> Weights:
    """Embedding, final norm and head, and the layers: `load_layer(prefix, layer)` fills each.

    `model` and `head` are what their tensors' names begin with.
    """
    w = Weights()
    w.rope = cfg.rope
    w.embed = r.linear(f"{model}.embed_tokens.weight", cfg.vocab_size, cfg.hidden_size)
    w.layers = []
    for i in range(cfg.n_layers):
        layer = Weights()
        load_layer(f"{model}.layers.{i}", layer)
        w.layers.append(layer)
    w.norm = r.vector(f"{model}.norm.weight", cfg.hidden_size)
    w.lm_head = w.embed
    if r.has(f"{head}.weight") and not cfg.tied:
        w.lm_head = r.linear(f"{head}.weight", cfg.vocab_size, cfg.hidden_size)
    return w


def load_norms(r: WeightReader, cfg: DecoderSizes, prefix: str, layer: Weights) -> None:
    """The norms in front of attention and MLP."""
    layer.attn_norm = r.vector(f"{prefix}.input_layernorm.weight", cfg.hidden_size)
    layer.mlp_norm = r.vector(f"{prefix}.post_attention_layernorm.weight", cfg.hidden_size)


def load_attention(
    r: WeightReader,
    cfg: DecoderSizes,
    prefix: str,
    layer: Weights,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    orders: tuple[Order, Order] = (None, None),
) -> None:
    """Matrices of queries, keys, values and the output; `orders`: of the rows of q and k."""

    def linear(name: str, n: int, k: int, biased: bool, order: Order = None) -> Any:
        full = f"{prefix}.self_attn.{name}"
        return r.linear(
            f"{full}.weight", n, k, bias=f"{full}.bias" if biased else None, order=order
        )

    hidden = cfg.hidden_size
    layer.q = linear("q_proj", cfg.q_size, hidden, qkv_bias, orders[0])
    layer.k = linear("k_proj", cfg.kv_size, hidden, qkv_bias, orders[1])
    layer.v = linear("v_proj", cfg.kv_size, hidden, qkv_bias)
    layer.o = linear("o_proj", hidden, cfg.q_size, o_bias)


def load_gated_mlp(
    r: WeightReader, cfg: DecoderSizes, prefix: str, layer: Weights, *, bias: bool = False
) -> None:
    """Matrices of gate, up and down."""

    def linear(name: str, n: int, k: int) -> Any:
        full = f"{prefix}.mlp.{name}"
        return r.linear(f"{full}.weight", n, k, bias=f"{full}.bias" if bias else None)

    hidden, inner = cfg.hidden_size, cfg.intermediate_size
    layer.gate = linear("gate_proj", inner, hidden)
    layer.up = linear("up_proj", inner, hidden)
    layer.down = linear("down_proj", hidden, inner)


def gated_mlp(p: Recorder, x: Handle, layer: Weights, eps: float) -> Handle:
    """x + down(silu(gate(h)) * up(h)) with h the norm of x."""
    h = p.rmsnorm(x, layer.mlp_norm, eps)
    return p.linear(p.swiglu(h, layer.gate, layer.up), layer.down, add=x)


def logits(p: Recorder, x: Handle, w: Weights, eps: float) -> Handle:
    """The output head over the selected rows."""
    return p.linear(p.rmsnorm(p.select(x), w.norm, eps), w.lm_head)


def decoder_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], architecture: str
) -> dict[str, Any]:
    """GGUF metadata of decoders with RMSNorm, as a Hugging Face configuration."""
    key = f"{architecture}.attention.layer_norm_rms_epsilon"
    sizes = sizes_from_gguf(metadata, tensors, architecture)
    return sizes | {"rms_norm_eps": config_value(metadata, key, float)}


def sizes_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], architecture: str
) -> dict[str, Any]:
    """GGUF metadata that all decoders have, as a Hugging Face configuration."""
    a = architecture
    heads = config_value(metadata, f"{a}.attention.head_count", int)
    hidden = config_value(metadata, f"{a}.embedding_length", int)
    embed = tensors.get("token_embd.weight")
    head_dim = config_value(metadata, f"{a}.attention.key_length", int, hidden // max(heads, 1))
    rotary = config_value(metadata, f"{a}.rope.dimension_count", int, head_dim)
    return {
        "vocab_size": config_value(
            metadata, f"{a}.vocab_size", int, embed.shape[0] if embed is not None else None
        ),
        "hidden_size": hidden,
        "intermediate_size": config_value(metadata, f"{a}.feed_forward_length", int),
        "num_hidden_layers": config_value(metadata, f"{a}.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": config_value(metadata, f"{a}.attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        # Half a channel more, so that no rounding loses one.
        "partial_rotary_factor": min(1.0, (rotary + 0.5) / max(head_dim, 1)),
        "max_position_embeddings": config_value(metadata, f"{a}.context_length", int),
        "tie_word_embeddings": "output.weight" not in tensors,
        **rope_from_gguf(metadata, a),
    }


DECODER_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
