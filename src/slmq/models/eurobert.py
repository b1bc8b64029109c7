"""EuroBERT: Hugging Face's model type "eurobert", a Llama whose tokens see the whole text.

Boizard et al., "EuroBERT", 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import UnsupportedModelError
from slmq.models.parts.config import DecoderConfig, decoder_values
from slmq.models.parts.decoder import gated_mlp, load_attention, load_gated_mlp, load_norms
from slmq.models.parts.encoder import config_labels, config_task
from slmq.models.parts.encoder_head import HeadNames, load_task_head
from slmq.models.parts.gguf import (
    DECODER_NAMES,
    LAYER_NAMES,
    GgufMap,
    Weights,
    decoder_from_gguf,
)
from slmq.models.parts.values import config_value

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording
    from slmq.weights.base import Reader

EMBED = "model.embed_tokens"
# What a label is made of, in its words and in those of `HeadNames`.
POOLS = {"bos": "row", "mean": "mean", "late": "late"}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    task : {"classify", "tags", "fill_mask"} or None
        What the head is for, if the model was saved with one.
    n_labels : int
        Outputs of a head that classifies.
    pool : str
        As of `HeadNames`.
    """

    attention_bias: bool
    mlp_bias: bool
    task: str | None
    n_labels: int
    pool: str

    @property
    def norm_eps(self) -> float:
        """What norms add to a variance."""
        return self.rms_norm_eps

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        pooling = config_value(config, "classifier_pooling", str, "late")
        if pooling not in POOLS:
            raise UnsupportedModelError(
                f"classifier_pooling {pooling!r:.80} is not supported; supported: "
                f"{', '.join(POOLS)}"
            )
        return cls(
            **decoder_values({"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, **config}),
            attention_bias=config_value(config, "attention_bias", bool, False),
            mlp_bias=config_value(config, "mlp_bias", bool, False),
            task=config_task(config),
            n_labels=len(config_labels(config)),
            pool=POOLS[pooling],
        )


def heads(cfg: Config) -> dict[str, HeadNames]:
    """The heads that the family has, by task."""
    return {
        "classify": HeadNames("classifier", "dense", "gelu", pool=cfg.pool),
        "tags": HeadNames("classifier"),
        "fill_mask": HeadNames("lm_head"),
    }


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses, and those of the head."""
    w = Weights(types=None, layers=[])
    w.embed = r.linear(f"{EMBED}.weight", cfg.vocab_size, cfg.hidden_size)
    bias = cfg.attention_bias
    for i in range(cfg.n_layers):
        prefix, layer = f"model.layers.{i}", Weights()
        load_norms(r, cfg, prefix, layer)
        load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias)
        load_gated_mlp(r, cfg, prefix, layer, bias=cfg.mlp_bias)
        w.layers.append(layer)
    w.norm = r.vector("model.norm.weight", cfg.hidden_size)
    w.head = load_task_head(r, cfg, heads(cfg), w.embed, EMBED)
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the hidden states of all tokens."""
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*cfg.rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, cfg.rms_norm_eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope, causal=False)
            x = p.linear(a, layer.o, add=x)
            x = gated_mlp(p, x, layer, cfg.rms_norm_eps)
    return p.rmsnorm(x, w.norm, cfg.rms_norm_eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "eurobert"."""
    causal = "eurobert.attention.causal"  # false in all of them
    known = {key: value for key, value in metadata.items() if key != causal}
    return decoder_from_gguf(known, tensors, "eurobert")


GGUF = GgufMap(
    architecture="eurobert",
    config=config_from_gguf,
    names=DECODER_NAMES,
    layer_names=LAYER_NAMES,
)
