"""Parts that decoders have in common: sizes, weights and steps of the usual transformer layer.

A family file takes those that are as its model has them, and writes out what is its own. None of
them asks which family it serves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slmq.models.parts.gguf import Weights, interleaved_to_halves
from slmq.models.parts.head import load_head
from slmq.weights.base import Reader
from slmq.weights.rows import Rows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from slmq.models.parts.config import DecoderConfig, DecoderSizes
    from slmq.models.parts.rope import Rope
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

    Order = npt.NDArray[np.int32] | None


def load_decoder(
    r: Reader,
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
    w.lm_head = load_head(r, cfg, w.embed, embed_name=f"{model}.embed_tokens", head=head)
    return w


def stored_rope(r: Reader, cfg: DecoderSizes) -> Rope:
    """The configuration's rope, with the divisors of its frequencies that a file holds.

    Llama 3's scaling reaches GGUF files, and folders made of them, as such.
    """
    if not r.layout.gguf_tensors or not r.has("rope_freqs.weight"):
        return cfg.rope
    divisors = r.vector("rope_freqs.weight", cfg.rope.rotary // 2)
    return cfg.rope.divided(divisors, divisors)


def rope_orders(cfg: DecoderSizes, interleaved: bool) -> tuple[Order, Order]:
    """Orders of the rows of queries and of keys whose halves rope is to turn.

    None where they are stored so; `interleaved` says that neighbours are.
    """
    if not interleaved:
        return None, None
    heads = (cfg.n_heads, cfg.n_kv_heads)
    queries, keys = (interleaved_to_halves(count, cfg.head_dim) for count in heads)
    return queries, keys


def load_norms(r: Reader, cfg: DecoderSizes, prefix: str, layer: Weights) -> None:
    """The norms in front of attention and MLP."""
    layer.attn_norm = r.vector(f"{prefix}.input_layernorm.weight", cfg.hidden_size)
    layer.mlp_norm = r.vector(f"{prefix}.post_attention_layernorm.weight", cfg.hidden_size)


def load_attention(
    r: Reader,
    cfg: DecoderSizes,
    prefix: str,
    layer: Weights,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    orders: tuple[Order, Order] = (None, None),
) -> None:
    """Matrices of queries, keys, values and the output; `orders`: of the rows of q and k.

    `qkv_bias` and `o_bias`: whether the configuration speaks of biases. Those that are stored
    count, each by itself. GGUF files may hold q, k and v in one matrix.
    """

    def linear(
        name: str, n: int, k: int, biased: bool, order: Order = None, rows: Rows | None = None
    ) -> Any:
        full = f"{prefix}.self_attn.{name}"
        bias = r.bias(f"{full}.bias", biased)
        return r.linear(f"{full}.weight", n, k, bias=bias, order=order, rows=rows)

    hidden, q, kv = cfg.hidden_size, cfg.q_size, cfg.kv_size
    if r.layout.gguf_tensors and r.has(f"{prefix}.self_attn.qkv_proj.weight"):
        whole = q + 2 * kv
        layer.q = linear("qkv_proj", q, hidden, qkv_bias, orders[0], Rows(0, whole))
        layer.k = linear("qkv_proj", kv, hidden, qkv_bias, orders[1], Rows(q, whole))
        layer.v = linear("qkv_proj", kv, hidden, qkv_bias, None, Rows(q + kv, whole))
    else:
        layer.q = linear("q_proj", q, hidden, qkv_bias, orders[0])
        layer.k = linear("k_proj", kv, hidden, qkv_bias, orders[1])
        layer.v = linear("v_proj", kv, hidden, qkv_bias)
    layer.o = linear("o_proj", hidden, q, o_bias)


def load_gated_mlp(
    r: Reader, cfg: DecoderSizes, prefix: str, layer: Weights, *, bias: bool = False
) -> None:
    """Matrices of gate, up and down; `bias`: whether the configuration speaks of biases."""

    def linear(name: str, n: int, k: int) -> Any:
        full = f"{prefix}.mlp.{name}"
        return r.linear(f"{full}.weight", n, k, bias=r.bias(f"{full}.bias", bias))

    hidden, inner = cfg.hidden_size, cfg.intermediate_size
    layer.gate = linear("gate_proj", inner, hidden)
    layer.up = linear("up_proj", inner, hidden)
    layer.down = linear("down_proj", hidden, inner)


def load_mlp(
    r: Reader,
    cfg: DecoderSizes,
    prefix: str,
    names: tuple[str, str],
    layer: Weights,
    *,
    bias: bool = False,
) -> None:
    """Matrices of an MLP without a gate, of the modules `names` of `prefix`."""

    def linear(name: str, n: int, k: int) -> Any:
        full = f"{prefix}.{name}"
        return r.linear(f"{full}.weight", n, k, bias=r.bias(f"{full}.bias", bias))

    layer.up = linear(names[0], cfg.intermediate_size, cfg.hidden_size)
    layer.down = linear(names[1], cfg.hidden_size, cfg.intermediate_size)


def gated_mlp(p: Recording, x: Handle, layer: Weights, eps: float) -> Handle:
    """x + down(silu(gate(h)) * up(h)) with h the norm of x."""
    h = p.rmsnorm(x, layer.mlp_norm, eps)
    return p.linear(p.gated(h, layer.gate, layer.up, "silu"), layer.down, add=x)


def logits(p: Recording, x: Handle, w: Weights, eps: float) -> Handle:
    """The output head over the selected rows."""
    return p.linear(p.rmsnorm(p.select(x), w.norm, eps), w.lm_head)
