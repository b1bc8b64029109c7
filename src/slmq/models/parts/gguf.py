"""What model files share: a bag of weights, GGUF name maps, row orders."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from slmq.errors import UnsupportedModelError
from slmq.models.parts.rope import rope_from_gguf
from slmq.models.parts.values import config_count, config_eps, config_layers


class Weights(SimpleNamespace):
    """Weights by attribute, as `forward` reads them."""


@dataclass(frozen=True)
class GgufMap:
    """How a GGUF file of one architecture maps to the Hugging Face model.

    Attributes
    ----------
    architecture : str
        The file's `general.architecture`.
    config : callable
        Metadata and tensors to a config.json-like dict.
    names, layer_names : dict
        Hugging Face module name to GGUF name, without `.weight` and `.bias`; of the model and of
        `<layers>.<i>` (GGUF: `blk.<i>`). A module of experts has no number here.
    layers : str
    whole_names : dict
        Whole names within a layer, of tensors that do not end in `.weight` or `.bias` in both.
    """

    architecture: str
    config: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    names: Mapping[str, str]
    layer_names: Mapping[str, str] = field(default_factory=dict)
    layers: str = "model.layers"
    whole_names: Mapping[str, str] = field(default_factory=dict)

    def name(self, name: str) -> str:
        """The GGUF tensor name of a Hugging Face tensor, or its own if there is none."""
        whole = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", name)
        if whole is not None and whole[2] in self.whole_names:
            return f"blk.{whole[1]}.{self.whole_names[whole[2]]}"
        module, _, kind = name.rpartition(".")
        layer = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", module)
        if layer is None:
            return f"{self.names.get(module, module)}.{kind}"
        expert = re.fullmatch(r"(.+\.experts)\.(\d+)\.(.+)", layer[2])
        if expert is not None:  # a stack has the matrices of all experts
            stack = self.layer_names[f"{expert[1]}.{expert[3]}"]
            return f"blk.{layer[1]}.{stack}.{kind}[{expert[2]}]"
        own = self.layer_names.get(layer[2])
        return name if own is None else f"blk.{layer[1]}.{own}.{kind}"


def interleaved_to_halves(heads: int, head_dim: int) -> npt.NDArray[np.int32]:
    """Row order that undoes the q/k permutation of llama.cpp's converter.

    GGUF files of the llama architecture store the rows of a head for rope on neighbouring pairs
    (2i, 2i + 1); our rope rotates halves (i, i + head_dim / 2), as the original weights do.
    """
    rows = np.arange(heads * head_dim, dtype=np.int32).reshape(heads, head_dim // 2, 2)
    return np.ascontiguousarray(rows.transpose(0, 2, 1).reshape(-1))


def decoder_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], architecture: str
) -> dict[str, Any]:
    """GGUF metadata of decoders with RMSNorm, as a Hugging Face configuration."""
    key = f"{architecture}.attention.layer_norm_rms_epsilon"
    sizes = sizes_from_gguf(metadata, tensors, architecture)
    return sizes | {"rms_norm_eps": config_eps(metadata, key)}


def sizes_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], architecture: str
) -> dict[str, Any]:
    """GGUF metadata that all decoders have, as a Hugging Face configuration."""
    a = architecture
    refuse_others(metadata, a)
    heads = layers_value(metadata, f"{a}.attention.head_count")
    hidden = config_count(metadata, f"{a}.embedding_length")
    embed = tensors.get("token_embd.weight")
    head_dim = config_count(metadata, f"{a}.attention.key_length", hidden // heads)
    rotary = config_count(metadata, f"{a}.rope.dimension_count", head_dim)
    return {
        "vocab_size": config_count(
            metadata, f"{a}.vocab_size", embed.shape[0] if embed is not None else None
        ),
        "hidden_size": hidden,
        "intermediate_size": layers_value(metadata, f"{a}.feed_forward_length"),
        "num_hidden_layers": config_layers(metadata, f"{a}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": layers_value(metadata, f"{a}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        # Half a channel more, so that no rounding loses one.
        "partial_rotary_factor": min(1.0, (rotary + 0.5) / head_dim),
        "max_position_embeddings": config_count(metadata, f"{a}.context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        **rope_from_gguf(metadata, a),
    }


def layers_value(metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A size, or a list of sizes by layer that are all the same.

    Raises
    ------
    UnsupportedModelError
        If layers differ.
    CheckpointError
        As `config_count`.
    """
    found = metadata.get(key)
    if isinstance(found, list) and found:
        if any(value != found[0] for value in found):
            raise UnsupportedModelError(
                f"{key}: layers of different sizes ({', '.join(map(str, found)):.80}) are not "
                f"supported"
            )
        metadata = {key: found[0]}
    return config_count(metadata, key, default)


def refuse_others(metadata: Mapping[str, Any], architecture: str) -> None:
    """Raise for models that have an architecture's name and compute something else.

    Raises
    ------
    UnsupportedModelError
        For a mixture of experts, and for a model whose tokens see later ones.
    """
    refuse_experts(metadata, architecture)
    if metadata.get(f"{architecture}.attention.causal") is False:
        raise UnsupportedModelError(
            "attention to later tokens (an encoder, made for embeddings) is not supported"
        )


def refuse_experts(metadata: Mapping[str, Any], architecture: str) -> None:
    """Raise UnsupportedModelError for a mixture of experts."""
    if metadata.get(f"{architecture}.expert_count"):
        raise UnsupportedModelError(
            f"a mixture of {metadata[f'{architecture}.expert_count']} experts is not supported"
        )


def no_gguf(architecture: str, embed: str) -> GgufMap:
    """The map of a family that has no GGUF files; `embed` is the module of the embedding."""

    def refuse(_metadata: Mapping[str, Any], _tensors: Mapping[str, Any]) -> NoReturn:
        raise UnsupportedModelError(
            f"GGUF files of architecture {architecture!r} are not supported; load the folder that "
            f"they were made of"
        )

    return GgufMap(architecture=architecture, config=refuse, names={embed: "token_embd"})


def any_bias(tensors: Mapping[str, Any], *parts: str) -> bool:
    """Whether any layer has a bias of one of these parts (``attn_q``)."""
    ends = tuple(f".{part}.bias" for part in parts)
    return any(name.startswith("blk.") and name.endswith(ends) for name in tensors)


ATTENTION_PARTS = ("attn_qkv", "attn_q", "attn_k", "attn_v", "attn_output")

DECODER_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
