"""Parts that decoders have in common: sizes, weights and steps of the usual transformer layer.

A family file takes those that are as its model has them, and writes out what is its own. None of
them asks which family it serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmq.models.parts.config import DecoderConfig, DecoderSizes

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slmq.models.parts.gguf import Weights
from slmq.weights.base import Reader

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

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
    w.lm_head = w.embed
    if r.has(f"{head}.weight") and not cfg.tied:
        w.lm_head = r.linear(f"{head}.weight", cfg.vocab_size, cfg.hidden_size)
    return w


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
    r: Reader, cfg: DecoderSizes, prefix: str, layer: Weights, *, bias: bool = False
) -> None:
    """Matrices of gate, up and down."""

    def linear(name: str, n: int, k: int) -> Any:
        full = f"{prefix}.mlp.{name}"
        return r.linear(f"{full}.weight", n, k, bias=f"{full}.bias" if bias else None)

    hidden, inner = cfg.hidden_size, cfg.intermediate_size
    layer.gate = linear("gate_proj", inner, hidden)
    layer.up = linear("up_proj", inner, hidden)
    layer.down = linear("down_proj", hidden, inner)


def gated_mlp(p: Recording, x: Handle, layer: Weights, eps: float) -> Handle:
    """x + down(silu(gate(h)) * up(h)) with h the norm of x."""
    h = p.rmsnorm(x, layer.mlp_norm, eps)
    return p.linear(p.gated(h, layer.gate, layer.up, "silu"), layer.down, add=x)


def logits(p: Recording, x: Handle, w: Weights, eps: float) -> Handle:
    """The output head over the selected rows."""
    return p.linear(p.rmsnorm(p.select(x), w.norm, eps), w.lm_head)
