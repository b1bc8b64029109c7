"""GTE v1.5 and multilingual, Arctic M v2: "gte", which was called "new" in its first files.

BERT's layers with rope and gated MLPs (Zhang et al., "mGTE", 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import UnsupportedModelError
from slmq.models.parts.encoder import (
    EncoderConfig,
    encoder_values,
    load_encoder_norm,
)
from slmq.models.parts.encoder_head import HeadNames, load_task_head
from slmq.models.parts.gated_encoder import (
    GATES,
    PLAIN,
    GatedNames,
    gated_layers,
    load_gated_layers,
    typed_embedding,
)
from slmq.models.parts.gguf import Weights, no_gguf
from slmq.models.parts.rope import BASES, FACTORS, Rope, rope_of
from slmq.models.parts.values import config_count, config_number, config_value

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording
    from slmq.weights.base import Reader

EMBED = "gte.embeddings.word_embeddings"
BASE = 160000.0
# The layer as the first files have it, whose names begin with "new".
FIRST = GatedNames(
    qkv="attention.qkv_proj",
    o="attention.o_proj",
    attn_norm="attn_ln",
    up_gate="mlp.up_gate_proj",
    down="mlp.down_proj",
    mlp_norm="mlp_ln",
)


@dataclass(frozen=True)
class Config(EncoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    n_types : int
        Types of tokens, of which all texts have the first; 0: there are none.
    rope : Rope
    """

    n_types: int
    rope: Rope

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `encoder_values`."""
        kind = config_value(config, "position_embedding_type", str, "rope")
        if kind != "rope" or config.get("logn_attention_scale"):
            raise UnsupportedModelError(
                f"position_embedding_type {kind!r:.80} with logn_attention_scale "
                f"{config.get('logn_attention_scale')!r:.20} is not supported; supported: rope "
                f"without"
            )
        values = encoder_values(
            {"max_position_embeddings": 8192, **config, "position_embedding_type": "absolute"}
        )
        if values["activation"] not in GATES:
            raise UnsupportedModelError(f"hidden_act {values['activation']!r} is not supported")
        head_dim = values["hidden_size"] // values["n_heads"]
        return cls(
            **values,
            n_types=config_count(config, "type_vocab_size", 1, low=0),
            rope=rope_of(_with_ntk({"rope_theta": BASE, **config}, head_dim), head_dim),
        )


def _with_ntk(config: Mapping[str, Any], head_dim: int) -> Mapping[str, Any]:
    """The scaling "ntk" of the first files as what it comes to: a larger base and a factor."""
    scaling = config.get("rope_scaling")
    if not isinstance(scaling, Mapping) or scaling.get("type") != "ntk":
        return config
    if scaling.get("mixed_b") is not None:
        raise UnsupportedModelError("rope_scaling with mixed_b is not supported")
    factor = config_number(scaling, "factor", *FACTORS)
    base = config_number(config, "rope_theta", *BASES) * factor
    scaled = {"rope_type": "linear", "factor": factor ** (2 / head_dim), "rope_theta": base}
    return {**config, "rope_scaling": None, "rope_theta": base, "rope_parameters": scaled}


def heads(_cfg: Config) -> dict[str, HeadNames]:
    """The heads that the family has, by task."""
    return _heads("gte", "lm_head.layer_norm")


def _heads(root: str, norm: str) -> dict[str, HeadNames]:
    return {
        "classify": HeadNames("classifier", f"{root}.pooler.dense", "tanh"),
        "tags": HeadNames("classifier"),
        "fill_mask": HeadNames("lm_head.decoder", "lm_head.dense", "gelu", norm),
    }


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses, and those of the head."""
    root = "new" if r.has("new.embeddings.word_embeddings.weight") else "gte"
    first = r.has(f"{root}.encoder.layer.0.{FIRST.o}.weight")
    name, w = f"{root}.embeddings", Weights(types=None)
    w.embed = r.linear(f"{name}.word_embeddings.weight", cfg.vocab_size, cfg.hidden_size)
    if cfg.n_types:
        types = f"{name}.token_type_embeddings.weight"
        w.types = r.linear(types, cfg.n_types, cfg.hidden_size, floats=True)
    w.embed_norm = load_encoder_norm(r, f"{name}.LayerNorm", cfg.hidden_size)
    layers = f"{root}.encoder.layer" if first else f"{root}.layers"
    w.layers = load_gated_layers(r, cfg, layers, FIRST if first else PLAIN)
    norm = "lm_head.norm" if r.has("lm_head.norm.weight") else "lm_head.layer_norm"
    w.head = load_task_head(r, cfg, _heads(root, norm), w.embed, f"{name}.word_embeddings")
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the hidden states of all tokens."""
    return gated_layers(p, typed_embedding(p, w, cfg), w.layers, cfg, cfg.rope)


GGUF = no_gguf("gte", EMBED)
