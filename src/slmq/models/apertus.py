"""Apertus 8B and 70B: Hugging Face's model type "apertus".

A Llama with norms of queries and keys, whose MLP has no gate and an activation, xIELU, with two
parameters of each layer (Swiss AI Initiative, "Apertus", 2025; Huang, "Deriving Activation
Functions Using Integration", 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import CheckpointError
from slmq.machine.exact import exact_exp, exact_log
from slmq.models.llama import config_from_gguf as llama_from_gguf
from slmq.models.parts.config import DecoderConfig, decoder_values
from slmq.models.parts.decoder import load_attention, load_decoder, load_mlp, logits, stored_rope
from slmq.models.parts.gguf import DECODER_NAMES, LAYER_NAMES, GgufMap, Weights
from slmq.models.parts.values import config_number, config_value
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 65536, "rope_theta": 12e6}
PARAMETERS = ("alpha_p", "alpha_n", "beta", "eps")
LARGEST = 80.0  # of a parameter: exp of it is finite in float32, too


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    attention_bias : bool
    xielu : tuple of tuple of float
        `PARAMETERS` of every layer, where they are no tensors: in GGUF files.
    """

    attention_bias: bool
    xielu: tuple[tuple[float, ...], ...]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        fields = decoder_values(DEFAULTS | dict(config), activation="xielu")
        return cls(
            **fields,
            attention_bias=config_value(config, "attention_bias", bool, False),
            xielu=_listed(config, fields["n_layers"]),
        )


def _listed(config: Mapping[str, Any], layers: int) -> tuple[tuple[float, ...], ...]:
    """The parameters that a configuration lists by layer."""
    if "xielu" not in config:
        return ()
    listed = config_value(config, "xielu", dict)
    columns = []
    for name in PARAMETERS:
        values = config_value(listed, name, list)
        if len(values) != layers:
            raise CheckpointError(
                f"expected xielu.{name} of {layers} layers, found {len(values)} values"
            )
        columns.append([config_number({name: v}, name, -LARGEST, LARGEST) for v in values])
    return tuple(zip(*columns, strict=True))


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        layer.attn_norm = r.vector(f"{prefix}.attention_layernorm.weight", cfg.hidden_size)
        layer.mlp_norm = r.vector(f"{prefix}.feedforward_layernorm.weight", cfg.hidden_size)
        bias = cfg.attention_bias
        load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias)
        layer.q_norm = r.vector(f"{prefix}.self_attn.q_norm.weight", cfg.head_dim)
        layer.k_norm = r.vector(f"{prefix}.self_attn.k_norm.weight", cfg.head_dim)
        load_mlp(r, cfg, f"{prefix}.mlp", ("up_proj", "down_proj"), layer)
        if not cfg.xielu:
            layer.xielu = [float(r.vector(f"{prefix}.mlp.act_fn.{p}", 1)[0]) for p in PARAMETERS]

    w = load_decoder(r, cfg, load_layer)
    w.rope = stored_rope(r, cfg)
    for layer, parameters in zip(w.layers, cfg.xielu, strict=False):
        layer.xielu = list(parameters)
    return w


def xielu_of(alpha_p: float, alpha_n: float, beta: float, eps: float) -> tuple[float, float, float]:
    """What `Recording.xielu` takes, from the parameters as they are stored.

    Above zero alpha_p' x^2 + beta x, below alpha_n' (exp(x) - 1 - x) + beta x, with alpha_p' the
    softplus of alpha_p and alpha_n' beta more than that of alpha_n. `eps` says how near to zero
    trainers stop the exponential: what that changes is less than eps.

    Raises
    ------
    CheckpointError
        If a parameter is out of range, or eps is more than a trifle.
    """
    for value in (alpha_p, alpha_n, beta):
        if not abs(value) <= LARGEST:
            raise CheckpointError(
                f"expected xIELU parameters of -{LARGEST:g}..{LARGEST:g}, found {value}"
            )
    if not -1e-5 <= eps <= 0.0:
        raise CheckpointError(f"expected an eps of xIELU of -1e-05..0, found {eps}")
    return _softplus(alpha_p), beta + _softplus(alpha_n), beta


def _softplus(x: float) -> float:
    return exact_log(1.0 + exact_exp(x))


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, cfg.rms_norm_eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            q = p.head_norm(q, layer.q_norm, cfg.rms_norm_eps)
            k = p.head_norm(k, layer.k_norm, cfg.rms_norm_eps)
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope)
            x = p.linear(a, layer.o, add=x)
            h = p.linear(p.rmsnorm(x, layer.mlp_norm, cfg.rms_norm_eps), layer.up)
            x = p.linear(p.xielu(h, *xielu_of(*layer.xielu)), layer.down, add=x)
    return logits(p, x, w, cfg.rms_norm_eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "apertus" as a Hugging Face configuration."""
    xielu = {name: metadata.get(f"xielu.{name}") for name in PARAMETERS}
    config = llama_from_gguf(metadata, tensors, "apertus")
    return config | {"hidden_act": "xielu", "xielu": xielu}


GGUF = GgufMap(
    architecture="apertus",
    config=config_from_gguf,
    names=DECODER_NAMES | {"rope_freqs": "rope_freqs"},
    layer_names=LAYER_NAMES
    | {
        "attention_layernorm": "attn_norm",
        "feedforward_layernorm": "ffn_norm",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
    },
)
