"""Nomic Embed Text: Hugging Face's model type "nomic_bert".

BERT's layers with rope and gated MLPs, without biases (Nussbaum et al., "Nomic Embed", 2024). Its
texts begin with what they are for, such as "search_query: ".
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
from slmq.models.parts.encoder_gguf import BERT_EMBEDDINGS, encoder_from_gguf
from slmq.models.parts.encoder_head import HeadNames, load_task_head
from slmq.models.parts.gated_encoder import (
    GATES,
    PLAIN,
    GatedNames,
    gated_layers,
    load_gated_layers,
    typed_embedding,
)
from slmq.models.parts.gguf import GgufMap, Weights
from slmq.models.parts.rope import BASES, Rope, rope_of
from slmq.models.parts.values import config_count, config_number

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording
    from slmq.weights.base import Reader

EMBED = "nomic_bert.embeddings.word_embeddings"
BASE = 1000.0
# The layer as the published files have it.
FIRST = GatedNames(
    qkv="attn.Wqkv",
    o="attn.out_proj",
    attn_norm="norm1",
    up="mlp.fc11",
    gate="mlp.fc12",
    down="mlp.fc2",
    mlp_norm="norm2",
)
# BERT's words for what these call by GPT-2's.
OTHER_NAMES = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "layer_norm_eps": "layer_norm_epsilon",
    "max_position_embeddings": "n_positions",
    "rope_theta": "rotary_emb_base",
}
GATED = {"swiglu": "silu", "geglu": "gelu"}
# What other models of the same code have, by what they set.
REFUSED = {
    "prenorm": (False,),
    "parallel_block": (False,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_fraction": (1, 1.0),
    "use_rms_norm": (False,),
}


@dataclass(frozen=True)
class Config(EncoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    n_types : int
        Texts that one input may have side by side.
    rope : Rope
    """

    n_types: int
    rope: Rope

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `encoder_values`."""
        for key, known in REFUSED.items():
            if config.get(key) is not None and config[key] not in known:
                raise UnsupportedModelError(f"{key} {config[key]!r:.80} is not supported")
        named = _named(config)
        values = encoder_values(named)
        if values["activation"] not in GATES:
            raise UnsupportedModelError(f"hidden_act {values['activation']!r} is not supported")
        return cls(
            **values,
            n_types=config_count(config, "type_vocab_size", 2),
            rope=rope_of(named, values["hidden_size"] // values["n_heads"]),
        )


def _named(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in BERT's words."""
    found: dict[str, Any] = {"max_position_embeddings": 2048, "rope_theta": BASE, **config}
    if "n_embd" not in config:
        return {"hidden_act": "silu", **found}
    found |= {ours: config[theirs] for ours, theirs in OTHER_NAMES.items() if theirs in config}
    if found.get("rotary_emb_scale_base") is not None:
        raise UnsupportedModelError("rotary_emb_scale_base is not supported")
    act = config.get("activation_function")
    if act not in GATED:
        raise UnsupportedModelError(
            f"activation_function {act!r:.80} is not supported; supported: {', '.join(GATED)}"
        )
    found["hidden_act"] = GATED[act]
    # Beyond the positions that it was trained for, the base would depend on the text's length.
    if config_number(config, "rotary_scaling_factor", 0.0, 1e6, 0.0) > 0:
        trained = config_count(config, "max_trained_positions", 2048)
        longest = config_count(found, "max_position_embeddings")
        found["max_position_embeddings"] = min(longest, trained)
    return found


def heads(cfg: Config) -> dict[str, HeadNames]:
    """The heads that the family has, by task."""
    transform = "cls.predictions.transform"
    return {
        "classify": HeadNames("classifier", "nomic_bert.pooler.dense", "tanh"),
        "tags": HeadNames("classifier"),
        "fill_mask": HeadNames(
            "cls.predictions.decoder",
            f"{transform}.dense",
            cfg.activation,
            f"{transform}.layer_norm",
            bias="cls.predictions.bias",
        ),
    }


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses, and those of the head."""
    first = r.has(f"nomic_bert.encoder.layers.0.{FIRST.o}.weight")
    w = Weights()
    w.embed = r.linear(f"{EMBED}.weight", cfg.vocab_size, cfg.hidden_size)
    types = "nomic_bert.embeddings.token_type_embeddings.weight"
    w.types = r.linear(types, cfg.n_types, cfg.hidden_size, floats=True)
    norm = "nomic_bert.emb_ln" if first else "nomic_bert.embeddings.LayerNorm"
    w.embed_norm = load_encoder_norm(r, norm, cfg.hidden_size)
    layers = "nomic_bert.encoder.layers" if first else "nomic_bert.layers"
    w.layers = load_gated_layers(r, cfg, layers, FIRST if first else PLAIN)
    w.head = load_task_head(r, cfg, heads(cfg), w.embed, EMBED)
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the hidden states of all tokens."""
    return gated_layers(p, typed_embedding(p, w, cfg), w.layers, cfg, cfg.rope)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "nomic-bert"."""
    base = config_number(metadata, "nomic-bert.rope.freq_base", *BASES, BASE)
    return encoder_from_gguf(metadata, tensors, "nomic-bert") | {"rope_theta": base}


GGUF = GgufMap(
    architecture="nomic-bert",
    config=config_from_gguf,
    names={
        **{f"nomic_bert.embeddings.{name}": gguf for name, gguf in BERT_EMBEDDINGS.items()},
        "nomic_bert.emb_ln": "token_embd_norm",
        "nomic_bert.pooler.dense": "cls",
        "classifier": "cls.output",
    },
    layer_names={
        "attn.Wqkv": "attn_qkv",
        "attn.out_proj": "attn_output",
        "norm1": "attn_output_norm",
        "mlp.fc11": "ffn_up",
        "mlp.fc12": "ffn_gate",
        "mlp.fc2": "ffn_down",
        "norm2": "layer_output_norm",
    },
    layers="nomic_bert.encoder.layers",
)
