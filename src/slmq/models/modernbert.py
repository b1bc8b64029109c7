"""ModernBERT: rope, gated MLPs without biases, windows in two layers of three.

Warner et al., "Smarter, Better, Faster, Longer", 2024. Norms stand before attention and MLP, and
one more at the end; layers that see all turn by another base than those with a window.
GTE-ModernBERT and Ruri v3 are of this kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.models.parts.encoder import (
    EncoderConfig,
    config_labels,
    config_task,
    load_encoder_norm,
)
from slmq.models.parts.encoder_gguf import encoder_from_gguf
from slmq.models.parts.encoder_head import HeadNames, load_task_head
from slmq.models.parts.gated_encoder import GATES
from slmq.models.parts.gguf import GgufMap, Weights
from slmq.models.parts.layer_norm import config_activation
from slmq.models.parts.rope import BASES as ROPE_BASES
from slmq.models.parts.rope import Rope, rope_of
from slmq.models.parts.values import (
    config_count,
    config_eps,
    config_layers,
    config_number,
    config_value,
)
from slmq.weights.rows import Rows

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording
    from slmq.weights.base import Reader

EMBED = "model.embeddings.tok_embeddings"
FULL, SLIDING = "full_attention", "sliding_attention"
# The keys of older configurations, and what counts without them.
BASES = {FULL: ("global_rope_theta", 160000.0), SLIDING: ("local_rope_theta", 10000.0)}


@dataclass(frozen=True)
class Config(EncoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    windows : tuple of int
        How far each layer sees on either side; 0: all.
    full, sliding : Rope
        Of the layers that see all, and of those with a window.
    head_activation : str
    mean_pooled : bool
        Whether a head that classifies texts takes the mean of all tokens, not the first.
    """

    windows: tuple[int, ...]
    full: Rope
    sliding: Rope
    head_activation: str
    mean_pooled: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json.

        Raises
        ------
        CheckpointError
            If a value is missing or makes no sense.
        UnsupportedModelError
            For an activation that no gate has.
        """
        hidden = config_count(config, "hidden_size")
        heads = config_count(config, "num_attention_heads")
        if hidden % heads != 0:
            raise CheckpointError(
                f"expected hidden_size to be a multiple of num_attention_heads, found {hidden} "
                f"and {heads}"
            )
        activation = config_activation(config, "hidden_activation", "gelu")
        if activation not in GATES:
            raise UnsupportedModelError(f"hidden_activation {activation!r} is not supported")
        pooling = config_value(config, "classifier_pooling", str, "cls")
        if pooling not in ("cls", "mean"):
            raise UnsupportedModelError(
                f"classifier_pooling {pooling!r:.80} is not supported; supported: cls, mean"
            )
        return cls(
            vocab_size=config_count(config, "vocab_size"),
            hidden_size=hidden,
            inner_size=config_count(config, "intermediate_size"),
            n_layers=config_layers(config),
            n_heads=heads,
            max_positions=config_count(config, "max_position_embeddings", 8192),
            norm_eps=config_eps(config, "norm_eps", 1e-5),
            activation=activation,
            task=config_task(config),
            n_labels=len(config_labels(config)),
            tied=config_value(config, "tie_word_embeddings", bool, True),
            windows=windows_of(config),
            full=rope_for(config, FULL, hidden // heads),
            sliding=rope_for(config, SLIDING, hidden // heads),
            head_activation=config_activation(config, "classifier_activation", "gelu"),
            mean_pooled=pooling == "mean",
        )


def windows_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """How far each layer sees, by `layer_types`, or by every how many layers one sees all."""
    layers = config_layers(config)
    every = config_count(config, "global_attn_every_n_layers", 3)
    usual = [SLIDING if i % every else FULL for i in range(layers)]
    types = config_value(config, "layer_types", list, usual)
    if len(types) != layers or not {FULL, SLIDING}.issuperset(map(str, types)):
        raise CheckpointError(
            f"layer_types: expected {layers} of {FULL} or {SLIDING}, found {types!r:.80}"
        )
    reach = config_count(config, "local_attention", 128, low=2) // 2
    return tuple(reach if kind == SLIDING else 0 for kind in types)


def rope_for(config: Mapping[str, Any], kind: str, head_dim: int) -> Rope:
    """The rope of layers of one kind, as transformers 5 or earlier configurations have it."""
    key, base = BASES[kind]
    theta = config[key] if config.get(key) is not None else base
    by_kind = config_value(config, "rope_parameters", dict, {})
    own = by_kind.get(kind) or {}
    if not isinstance(own, Mapping):
        raise CheckpointError(f"rope_parameters of {kind}: expected an object, found {own!r:.80}")
    around = {"max_position_embeddings": config.get("max_position_embeddings"), "rope_theta": theta}
    return rope_of({**around, "rope_parameters": dict(own)}, head_dim)


def heads(cfg: Config) -> dict[str, HeadNames]:
    """The heads that the family has, by task."""
    pool = "mean" if cfg.mean_pooled else "row"
    head = ("head.dense", cfg.head_activation, "head.norm")
    return {
        "classify": HeadNames("classifier", *head, pool=pool),
        "tags": HeadNames("classifier", *head),
        "fill_mask": HeadNames("decoder", *head),
    }


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses, and those of the head."""
    hidden, inner = cfg.hidden_size, cfg.inner_size

    def linear(name: str, n: int, k: int, first: int, stored: int) -> Any:
        bias = f"{name}.bias" if r.has(f"{name}.bias") else None
        rows = None if n == stored else Rows(first, stored)
        return r.linear(f"{name}.weight", n, k, bias=bias, rows=rows)

    w = Weights(types=None)
    w.embed = r.linear(f"{EMBED}.weight", cfg.vocab_size, hidden)
    w.embed_norm = load_encoder_norm(r, "model.embeddings.norm", hidden)
    w.layers = []
    for i in range(cfg.n_layers):
        name, layer = f"model.layers.{i}", Weights()
        # The first layer takes the embeddings, which are normed already.
        layer.attn_norm = load_encoder_norm(r, f"{name}.attn_norm", hidden) if i else None
        for part, place in (("q", 0), ("k", 1), ("v", 2)):
            matrix = linear(f"{name}.attn.Wqkv", hidden, hidden, place * hidden, 3 * hidden)
            setattr(layer, part, matrix)
        layer.o = linear(f"{name}.attn.Wo", hidden, hidden, 0, hidden)
        layer.mlp_norm = load_encoder_norm(r, f"{name}.mlp_norm", hidden)
        layer.gate = linear(f"{name}.mlp.Wi", inner, hidden, 0, 2 * inner)
        layer.up = linear(f"{name}.mlp.Wi", inner, hidden, inner, 2 * inner)
        layer.down = linear(f"{name}.mlp.Wo", hidden, inner, 0, hidden)
        w.layers.append(layer)
    w.norm = load_encoder_norm(r, "model.final_norm", hidden)
    w.head = load_task_head(r, cfg, heads(cfg), w.embed, EMBED)
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the hidden states of all tokens."""
    eps = cfg.norm_eps
    full, sliding = p.rope(*cfg.full.at(p.n_ctx)), p.rope(*cfg.sliding.at(p.n_ctx))
    x = p.layernorm(p.embed(w.embed), w.embed_norm, eps)
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            window = cfg.windows[i]
            h = x if layer.attn_norm is None else p.layernorm(x, layer.attn_norm, eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            rope = sliding if window else full
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope, window=window, causal=False)
            x = p.linear(a, layer.o, add=x)
            h = p.gated(p.layernorm(x, layer.mlp_norm, eps), layer.gate, layer.up, cfg.activation)
            x = p.linear(h, layer.down, add=x)
    return p.layernorm(x, w.norm, eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "modern-bert"."""
    a = "modern-bert"
    config = encoder_from_gguf(metadata, tensors, a)
    config["norm_eps"] = config["layer_norm_eps"]
    config["hidden_activation"] = config_value(metadata, f"{a}.hidden_act", str, "gelu")
    config["classifier_pooling"] = "cls" if metadata.get(f"{a}.pooling_type") == 2 else "mean"
    window = f"{a}.attention.sliding_window"
    if metadata.get(window):
        config["local_attention"] = config_count(metadata, window, low=2)
        every = metadata.get(f"{window}_pattern", 3)
        if isinstance(every, list):  # true where a layer has a window
            config["layer_types"] = [SLIDING if slides else FULL for slides in every]
        else:
            pattern = {"every": every}
            config["global_attn_every_n_layers"] = config_count(pattern, "every")
    else:
        config["layer_types"] = [FULL] * config["num_hidden_layers"]
    for (key, base), name in zip(BASES.values(), ("freq_base", "freq_base_swa"), strict=True):
        config[key] = config_number(metadata, f"{a}.rope.{name}", *ROPE_BASES, base)
    return config


GGUF = GgufMap(
    architecture="modern-bert",
    config=config_from_gguf,
    names={
        EMBED: "token_embd",
        "model.embeddings.norm": "token_embd_norm",
        "model.final_norm": "output_norm",
        "head.dense": "cls",
        "head.norm": "cls.norm",
        "classifier": "cls.output",
    },
    layer_names={
        "attn_norm": "attn_norm",
        "attn.Wqkv": "attn_qkv",
        "attn.Wo": "attn_output",
        "mlp_norm": "ffn_norm",
        "mlp.Wi": "ffn_up",
        "mlp.Wo": "ffn_down",
    },
)
