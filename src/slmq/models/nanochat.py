"""nanochat: Hugging Face's model type "nanochat".

No norm has a weight, one stands right behind the embedding, queries and keys are normed behind
rope, which turns the other way round, and the MLP squares what is above zero (Karpathy,
"nanochat", 2025). There are no GGUF files of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slmq.models.parts.config import DecoderConfig, decoder_values
from slmq.models.parts.decoder import load_attention, load_mlp
from slmq.models.parts.gguf import Weights, no_gguf
from slmq.models.parts.head import load_head
from slmq.models.parts.values import config_number, config_value
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {"final_logit_softcapping": 15.0}
EMBED = "model.embed_tokens"


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked; a `logit_softcap` of 0 is none."""

    attention_bias: bool
    logit_softcap: float

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = DEFAULTS | dict(config)
        capped = values["final_logit_softcapping"] is not None
        return cls(
            **decoder_values(values, activation="relu2"),
            attention_bias=config_value(values, "attention_bias", bool, False),
            logit_softcap=config_number(values, "final_logit_softcapping", 1e-3, 1e6)
            if capped
            else 0.0,
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""
    w = Weights()
    w.embed = r.linear(f"{EMBED}.weight", cfg.vocab_size, cfg.hidden_size)
    w.layers = []
    for i in range(cfg.n_layers):
        prefix, layer, bias = f"model.layers.{i}", Weights(), cfg.attention_bias
        load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias)
        load_mlp(r, cfg, f"{prefix}.mlp", ("fc1", "fc2"), layer)
        w.layers.append(layer)
    w.lm_head = load_head(r, cfg, w.embed, embed_name=EMBED)
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    eps = cfg.rms_norm_eps
    ones, ones_of_head = np.ones(cfg.hidden_size, np.float32), np.ones(cfg.head_dim, np.float32)
    frequencies, factor = cfg.rope.at(p.n_ctx)
    rope = p.rope(-frequencies, factor)
    x = p.rmsnorm(p.embed(w.embed), ones, eps)  # f32[m, hidden]
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, ones, eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            q = p.head_norm(p.rotate(q, rope, cfg.head_dim), ones_of_head, eps)
            k = p.head_norm(p.rotate(k, rope, cfg.head_dim), ones_of_head, eps)
            a = p.attention(q, k, v, head_dim=cfg.head_dim)
            x = p.linear(a, layer.o, add=x)
            h = p.rmsnorm(x, ones, eps)
            x = p.linear(p.linear(h, layer.up, activation="relu2"), layer.down, add=x)
    h = p.rmsnorm(p.select(x), ones, eps)
    return p.linear(h, w.lm_head, softcap=cfg.logit_softcap)


GGUF = no_gguf("nanochat", EMBED)
