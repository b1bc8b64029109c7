"""Parts that encoders have in common: sizes, and the layer of BERT and its kin.

Such a layer norms what attention and the MLP have added to their input (post-norm: Vaswani et al.,
2017; Devlin et al., "BERT", 2018). A family file names the tensors and writes out what is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.models.parts.gguf import Weights
from slmq.models.parts.layer_norm import Norm, config_activation
from slmq.models.parts.values import config_count, config_eps, config_layers, config_value
from slmq.weights.base import Reader
from slmq.weights.rows import Rows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What a model was saved for, by the end of the name of its class in transformers.
TASKS = {
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tags",
    "ForMaskedLM": "fill_mask",
}


@dataclass(frozen=True)
class EncoderConfig:
    """What config.json says of every encoder, checked.

    Attributes
    ----------
    max_positions : int
        Most tokens of a text.
    task : {"classify", "tags", "fill_mask"} or None
        What the head is for, if the model was saved with one.
    n_labels : int
        Outputs of a head that classifies.
    tied : bool
        Whether a head that fills masks is said to be the embedding.
    """

    vocab_size: int
    hidden_size: int
    inner_size: int
    n_layers: int
    n_heads: int
    max_positions: int
    norm_eps: float
    activation: str
    task: str | None
    n_labels: int
    tied: bool

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden_size // self.n_heads


def encoder_values(config: Mapping[str, Any], first_position: int = 0) -> dict[str, Any]:
    """The fields of `EncoderConfig` from a config.json in BERT's terms.

    `first_position` is the row of the position table that a text begins with.

    Raises
    ------
    CheckpointError
        If a value is missing or makes no sense.
    UnsupportedModelError
        If the configuration asks for something that these layers lack.
    """
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise UnsupportedModelError("a decoder of this architecture is not supported")
    kind = config_value(config, "position_embedding_type", str, "absolute")
    if kind != "absolute":
        raise UnsupportedModelError(
            f"position_embedding_type {kind!r:.80} is not supported; supported: absolute"
        )
    hidden = config_count(config, "hidden_size")
    heads = config_count(config, "num_attention_heads")
    if hidden % heads != 0:
        raise CheckpointError(
            f"expected hidden_size to be a multiple of num_attention_heads, found {hidden} and "
            f"{heads}"
        )
    low = first_position + 1
    return {
        "vocab_size": config_count(config, "vocab_size"),
        "hidden_size": hidden,
        "inner_size": config_count(config, "intermediate_size"),
        "n_layers": config_layers(config),
        "n_heads": heads,
        "max_positions": config_count(config, "max_position_embeddings", 512, low=low)
        - first_position,
        "norm_eps": config_eps(config, "layer_norm_eps", 1e-12),
        "activation": config_activation(config, "hidden_act", "gelu"),
        "task": config_task(config),
        "n_labels": len(config_labels(config)),
        "tied": config_value(config, "tie_word_embeddings", bool, True),
    }


def config_task(config: Mapping[str, Any]) -> str | None:
    """What the head of a model is for, by `architectures`; None for a body alone."""
    names = config_value(config, "architectures", list, [])
    for name in names:
        for ending, task in TASKS.items():
            if isinstance(name, str) and name.endswith(ending):
                return task
    return None


def config_labels(config: Mapping[str, Any]) -> list[str]:
    """Names of the outputs of a head that classifies, in order.

    Like transformers, `LABEL_0` and so on where the configuration has none, and two of them where
    it does not say how many there are.

    Raises
    ------
    CheckpointError
        If `id2label` does not name the labels 0 ... n - 1.
    """
    named = config_value(config, "id2label", dict, {})
    if not named:
        return [f"LABEL_{i}" for i in range(config_count(config, "num_labels", 2))]
    try:
        by_id = {int(key): str(name) for key, name in named.items()}
    except (TypeError, ValueError):
        by_id = {}
    if sorted(by_id) != list(range(len(named))):
        raise CheckpointError(
            f"configuration value 'id2label': expected names of 0..{len(named) - 1}, found "
            f"{named!r:.80}"
        )
    return [by_id[i] for i in range(len(by_id))]


@dataclass(frozen=True)
class LayerNames:
    """Names of a layer's modules, behind the layer's own."""

    q: str
    k: str
    v: str
    o: str
    attn_norm: str
    up: str
    down: str
    mlp_norm: str


# BERT's names, which most of its kin have kept.
BERT_LAYER = LayerNames(
    q="attention.self.query",
    k="attention.self.key",
    v="attention.self.value",
    o="attention.output.dense",
    attn_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    mlp_norm="output.LayerNorm",
)


def load_encoder_norm(r: Reader, name: str, size: int) -> Norm:
    """A LayerNorm; files from before 2019 call weight and bias gamma and beta."""
    old = r.has(f"{name}.gamma")
    weight, bias = ("gamma", "beta") if old else ("weight", "bias")
    stored = r.has(f"{name}.{bias}")
    return Norm(
        r.vector(f"{name}.{weight}", size), r.vector(f"{name}.{bias}", size) if stored else None
    )


def load_embeddings(
    r: Reader, cfg: EncoderConfig, name: str, *, width: int, types: int = 0, first_position: int = 0
) -> Weights:
    """Words, positions, types if there are any, and the norm behind their sum."""
    stored = cfg.max_positions + first_position
    w = Weights()
    w.embed = r.linear(f"{name}.word_embeddings.weight", cfg.vocab_size, width)
    w.positions = r.linear(
        f"{name}.position_embeddings.weight",
        cfg.max_positions,
        width,
        rows=Rows(first_position, stored) if first_position else None,
        floats=True,
    )
    w.types = None
    if types:
        w.types = r.linear(f"{name}.token_type_embeddings.weight", types, width, floats=True)
    w.embed_norm = load_encoder_norm(r, f"{name}.LayerNorm", width)
    return w


def load_post_norm_layers(
    r: Reader, cfg: EncoderConfig, layers: str, names: LayerNames
) -> list[Weights]:
    """The layers `<layers>.0` and so on."""
    hidden, inner = cfg.hidden_size, cfg.inner_size
    loaded = []
    for i in range(cfg.n_layers):
        layer = Weights()
        for part, n, k in (
            ("q", hidden, hidden),
            ("k", hidden, hidden),
            ("v", hidden, hidden),
            ("o", hidden, hidden),
            ("up", inner, hidden),
            ("down", hidden, inner),
        ):
            name = f"{layers}.{i}.{getattr(names, part)}"
            bias = r.bias(f"{name}.bias", True)
            setattr(layer, part, r.linear(f"{name}.weight", n, k, bias=bias))
        for part in ("attn_norm", "mlp_norm"):
            norm = load_encoder_norm(r, f"{layers}.{i}.{getattr(names, part)}", hidden)
            setattr(layer, part, norm)
        loaded.append(layer)
    return loaded


def embed(p: Recording, w: Weights, cfg: EncoderConfig) -> Handle:
    """The norm of words, types and positions together: float32[m, width]."""
    x = p.embed(w.embed, positions=w.positions, types=w.types)
    return p.layernorm(x, w.embed_norm, cfg.norm_eps)


def post_norm_layers(
    p: Recording,
    x: Handle,
    layers: list[Weights],
    cfg: EncoderConfig,
    bias: npt.NDArray[np.float32] | None = None,
) -> Handle:
    """All layers; `bias` is what distances add to scores, as `Recorder.attention` takes it."""
    for i, layer in enumerate(layers):
        with p.scope(f"layer {i}"):
            q, k, v = p.linear(x, [layer.q, layer.k, layer.v]).split()
            a = p.attention(q, k, v, head_dim=cfg.head_dim, causal=False, bias=bias)
            x = p.layernorm(p.linear(a, layer.o, add=x), layer.attn_norm, cfg.norm_eps)
            h = p.linear(x, layer.up, activation=cfg.activation)
            x = p.layernorm(p.linear(h, layer.down, add=x), layer.mlp_norm, cfg.norm_eps)
    return x
