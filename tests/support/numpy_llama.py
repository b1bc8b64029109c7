"""A Llama forward pass in plain NumPy: slow, cache-free and easy to check by eye.

It is the second opinion on a whole model. It takes weights by their Hugging Face names as dense
arrays (see :mod:`numpy_weights` for readers), runs in float32 or float64, and shares no code with
the package under test. `m` is the number of tokens of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class LlamaConfig:
    """What the forward pass needs to know of a Llama model."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    inv_freq: npt.NDArray[np.float64] = field(repr=False)  # [head_dim / 2]
    bos_token_id: int | None = None

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Read a parsed ``config.json``, in the form of transformers 4 or of transformers 5."""
        n_heads = int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or config["hidden_size"] // n_heads)
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
        return cls(
            n_layers=int(config["num_hidden_layers"]),
            n_heads=n_heads,
            n_kv_heads=int(config.get("num_key_value_heads") or n_heads),
            head_dim=head_dim,
            rms_norm_eps=float(config["rms_norm_eps"]),
            inv_freq=rope_inv_freq(head_dim, theta, rope),
            bos_token_id=config.get("bos_token_id"),
        )


def rope_inv_freq(
    head_dim: int, theta: float, scaling: Mapping[str, Any]
) -> npt.NDArray[np.float64]:
    """Angular frequency of each rotated pair, radians per position: float64[head_dim / 2].

    `scaling` is the ``rope_scaling`` (transformers 4) or ``rope_parameters`` (5) mapping; the
    types ``default``, ``linear`` and ``llama3`` are known.
    """
    inv_freq = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return inv_freq
    factor = float(scaling["factor"])
    if kind == "linear":
        return inv_freq / factor
    if kind != "llama3":
        raise ValueError(f"expected rope type default, linear or llama3, got {kind!r}")
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    # How many turns a pair makes within the original context: many turns stay as they are, less
    # than `low` are slowed by `factor`, and between them the two are blended.
    turns = float(scaling["original_max_position_embeddings"]) * inv_freq / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return inv_freq * (keep + (1.0 - keep) / factor)


@dataclass(frozen=True)
class Perplexity:
    """A perplexity with its standard error (both in the unit of perplexity) and token count."""

    perplexity: float
    standard_error: float
    tokens: int


class NumpyLlama:
    """A Llama model as a function from token ids to logits.

    Parameters
    ----------
    config
        Sizes, norm epsilon and rope frequencies.
    weights
        Dense arrays by Hugging Face name (``model.layers.0.self_attn.q_proj.weight`` ...), each
        linear weight ``[n_out, k_in]``. Biases are used where present. Without
        ``lm_head.weight`` the embedding is the output matrix.
    dtype
        float32 or float64: everything is computed in it.
    cache_f16
        Round keys (after rope) and values to float16, as a cache of float16 does.
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: Mapping[str, Array],
        dtype: npt.DTypeLike = np.float32,
        *,
        cache_f16: bool = False,
    ) -> None:
        self.config = config
        self.cache_f16 = cache_f16
        self.dtype = np.dtype(dtype)
        self.weights = {name: np.asarray(w, self.dtype) for name, w in weights.items()}

    def logits(self, tokens: Sequence[int], rows: slice = slice(None)) -> Array:
        """Logits of one sequence that starts at position 0: [len(tokens), vocab], or its `rows`."""
        x = self.weights["model.embed_tokens.weight"][np.asarray(tokens, np.int64)]  # [m, hidden]
        for i in range(self.config.n_layers):
            x = x + self._attention(i, self._norm(x, f"model.layers.{i}.input_layernorm"))
            x = x + self._mlp(i, self._norm(x, f"model.layers.{i}.post_attention_layernorm"))
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return np.asarray(self._norm(x[rows], "model.norm") @ head.T)

    def greedy(self, tokens: Sequence[int], n_new: int) -> list[int]:
        """`tokens` and the `n_new` most likely tokens after them, one by one."""
        ids = list(tokens)
        for _ in range(n_new):
            ids.append(int(self.logits(ids, slice(-1, None))[0].argmax()))
        return ids

    def log_probs(self, tokens: Sequence[int], first: int = 0) -> npt.NDArray[np.float64]:
        """Log-probability of tokens[first + 1:], each given all before it: natural log."""
        logits = self.logits(tokens, slice(first, -1)).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        targets = np.asarray(tokens[first + 1 :], np.int64)
        picked = np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return np.asarray(picked - np.log(np.exp(logits).sum(axis=1)))

    def perplexity(
        self, tokens: Sequence[int], ctx: int = 512, chunks: int = 16, *, add_bos: bool = False
    ) -> Perplexity:
        """Perplexity of the first `chunks` consecutive windows of `ctx` tokens.

        The protocol of llama.cpp's perplexity tool: each window is a sequence of its own; in a
        model that asks for a BOS token it *replaces* the window's first token; the predictions
        made at positions ctx // 2 to ctx - 2 are scored, that is the tokens ctx // 2 + 1 to
        ctx - 1, ``ctx - ctx // 2 - 1`` a window. A rest that fills no window is not used.

        Tokens of a file are those of its bytes: WikiText-2 has CRLF line ends, and reading it
        with newlines translated gives other tokens and another number.
        """
        scores = []
        for start in range(0, min(chunks, len(tokens) // ctx) * ctx, ctx):
            window = list(tokens[start : start + ctx])
            if add_bos:
                if self.config.bos_token_id is None:
                    raise ValueError("expected a config with a BOS token for add_bos, got none")
                window[0] = self.config.bos_token_id
            scores.append(self.log_probs(window, first=ctx // 2))
        if not scores:
            raise ValueError(f"expected at least {ctx} tokens, got {len(tokens)}")
        return summarize(np.concatenate(scores))

    def _norm(self, x: Array, name: str) -> Array:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        eps = np.asarray(self.config.rms_norm_eps, self.dtype)
        return np.asarray(x / np.sqrt(mean_square + eps) * self.weights[f"{name}.weight"])

    def _linear(self, x: Array, name: str) -> Array:
        y = x @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")
        return np.asarray(y if bias is None else y + bias)

    def _rope(self, x: Array) -> Array:
        """Rotate x[heads, m, head_dim] by position: pair i is channels i and i + head_dim / 2."""
        angle = np.arange(x.shape[1])[:, None] * self.config.inv_freq  # [m, head_dim / 2]
        cos, sin = np.cos(angle).astype(self.dtype), np.sin(angle).astype(self.dtype)
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def _attention(self, layer: int, h: Array) -> Array:
        c, m, name = self.config, len(h), f"model.layers.{layer}.self_attn"

        def heads(part: str, count: int) -> Array:  # [count, m, head_dim]
            y = self._linear(h, f"{name}.{part}_proj")
            return np.asarray(y.reshape(m, count, c.head_dim).transpose(1, 0, 2))

        q, k, v = heads("q", c.n_heads), heads("k", c.n_kv_heads), heads("v", c.n_kv_heads)
        q, k = self._rope(q), self._rope(k)
        if self.cache_f16:
            k, v = (t.astype(np.float16).astype(self.dtype) for t in (k, v))
        k, v = (np.repeat(t, c.n_heads // c.n_kv_heads, axis=0) for t in (k, v))
        scores = (
            q @ k.transpose(0, 2, 1) * np.asarray(c.head_dim**-0.5, self.dtype)
        )  # [heads, m, m]
        scores += np.triu(np.full((m, m), -np.inf, self.dtype), 1)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        out = (p @ v).transpose(1, 0, 2).reshape(m, c.n_heads * c.head_dim)
        return self._linear(out, f"{name}.o_proj")

    def _mlp(self, layer: int, h: Array) -> Array:
        name = f"model.layers.{layer}.mlp"
        gate = self._linear(h, f"{name}.gate_proj")
        with np.errstate(over="ignore"):  # exp(-gate) may reach infinity, where silu is 0
            gate = gate / (1 + np.exp(-gate))
        return self._linear(gate * self._linear(h, f"{name}.up_proj"), f"{name}.down_proj")


def summarize(log_probs: npt.NDArray[np.float64]) -> Perplexity:
    """Perplexity and its standard error from the log-probability of each scored token."""
    n = len(log_probs)
    mean, variance = -log_probs.mean(), log_probs.var()
    value = math.exp(mean)
    return Perplexity(value, value * math.sqrt(variance / max(n - 1, 1)), n)
