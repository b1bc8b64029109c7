"""A model as `transformers` knows it, where a GGUF file has other terms for the same.

llama.cpp's converter renames architectures, adds one to the norms of some, puts heads and their
norms in another order, and leaves out what it knows by itself. Folders that slmq packed from such a
file have its terms, too. Nothing changes for a model that was opened from its own folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq.checkpoint import Checkpoint
from slmq.conversion.source import Source
from slmq.machine.exact import exact_each, exact_log
from slmq.models.parts.gguf import interleaved_to_halves
from slmq.models.parts.rope import LONGROPE, MULTIPLIER, PROPORTIONAL, STORED_DIVISORS
from slmq.tokenizer import load_tokenizer
from slmq.weights.rows import Rows

__all__ = ["SCALARS", "Edit", "Published", "published"]

F32 = npt.NDArray[np.float32]
Edit = Callable[[F32], F32]  # a whole tensor as it is stored, to the same of the same shape

# What transformers calls the models that GGUF files hold; by file of the family.
CLASSES = {
    "apertus": "ApertusForCausalLM",
    "arcee": "ArceeForCausalLM",
    "bitnet": "BitNetForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "hunyuan_v1_dense": "HunYuanDenseV1ForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "stablelm": "StableLmForCausalLM",
}
# Which of them a family's file is when some layers have a window.
WINDOWED = {"olmo2": "olmo3", "llama": "mistral"}
# Tensors of divisors, which become part of the configuration: far and near.
DIVISORS = (
    ("rope_freqs.weight", "rope_freqs.weight"),
    ("rope_factors_short.weight", "rope_factors_long.weight"),
)
SCALARS = (".act_fn.beta", ".act_fn.eps")  # Apertus' own files have them without a shape
BY_KIND = ("gemma3_text", "olmo3")  # have a rope for layers with a window, and one for others
# Families whose own rope turns neighbours: their queries and keys are read in another order.
NEIGHBOURS = ("helium",)


@dataclass
class Published:
    """What becomes of a source's configuration and tensors.

    Attributes
    ----------
    config : dict
        As transformers reads it.
    edits : dict of str to Edit
        By name of the stored tensor.
    dropped : set of str
        Tensors that are part of the configuration now.
    split : dict of str to int
        Norms of so many heads in one tensor, which become a tensor each.
    added : dict of str to float32[size]
        Tensors that were part of the metadata.
    renamed : dict of str to str
        Other names of what is asked for; ``name[first:last]`` are rows of a tensor.
    layouts : dict of str to Rows
        How the parts of a tensor lie in it, where they were apart.
    """

    config: dict[str, Any]
    edits: dict[str, Edit] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    split: dict[str, int] = field(default_factory=dict)
    added: dict[str, F32] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    layouts: dict[str, Rows] = field(default_factory=dict)


def published(source: Source) -> Published:
    """What `transformers` wants to read of a model."""
    found = Published(dict(source.config))
    family = source.opened.family.__name__.rpartition(".")[2]
    if family in NEIGHBOURS:
        _put_neighbours_together(found, source)
    config = found.config
    if "architectures" in config or "text_config" in config or family not in CLASSES:
        return found
    sizes = {wish.name: wish.n for wish in source.wishes}
    _name_it(found, family, _token_ids(source.checkpoint))
    _say_rope(found, source)
    _say_windows(config, source.opened.config)
    if config.pop("norm_offset", None) == 0.0 or config.get("llama_cpp_layout"):
        _take_one_from_norms(found, sizes)
    if config.pop("llama_cpp_layout", False):
        _put_value_heads_together(found, sizes)
    if "query_pre_attn_scalar" in config:
        config["query_pre_attn_scalar"] = int(config["query_pre_attn_scalar"])
    if family == "stablelm":
        _part_norms(found, sizes)
    if family == "gpt_oss" and source.layout.gguf_terms:
        _fuse_experts(found, sizes)
    if "xielu" in config:
        _store_xielu(found)
    if config["model_type"] == "granitemoehybrid":
        _say_no_experts(found, sizes)
    return found


def _name_it(found: Published, family: str, ids: dict[str, Any]) -> None:
    """The model's type and class, and the ids of its own tokens."""
    config = found.config
    if family in WINDOWED and config.get("sliding_window"):
        family = WINDOWED[family]
    if family == "granite" and config.get("position_embedding_type") == "nope":
        family = "granitemoehybrid"
    config["model_type"], config["architectures"] = family, [CLASSES[family]]
    config |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | ids


def _token_ids(checkpoint: Checkpoint) -> dict[str, Any]:
    """First and last tokens by the tokenizer, where there is one."""
    if not checkpoint.holds_tokenizer and not (checkpoint.path / "tokenizer.json").is_file():
        return {}
    tokenizer = load_tokenizer(checkpoint)
    ends = sorted(tokenizer.eos_ids)
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }


def _say_rope(found: Published, source: Source) -> None:
    """Divisors of frequencies are a longrope's; a factor of sines and cosines has one name."""
    config, rope = found.config, getattr(source.opened.config, "rope", None)
    if rope is None:
        return
    scaling: dict[str, Any] = {"rope_type": "default"} | dict(
        config.pop("rope_scaling", None) or {}
    )
    wishes = {wish.name: wish for wish in source.wishes}
    near, far = next((pair for pair in DIVISORS if pair[0] in wishes), ("", ""))
    found.dropped |= {near, far} - {""}
    if config["model_type"] == "gemma4_text":
        turning = source.values(wishes[near]) < np.float32(STORED_DIVISORS[1])
        config["rope_parameters"]["full_attention"] |= {
            "rope_type": PROPORTIONAL,
            "partial_rotary_factor": float(turning.mean()),
        }
        return
    if rope.kind == "yarn" and MULTIPLIER in scaling:
        scaling["attention_factor"] = rope.at(rope.positions).factor
    scaling.pop(MULTIPLIER, None)
    if near:
        values = [source.values(wishes[name]) for name in (near, far)]
        scaling |= {
            "rope_type": LONGROPE[0],
            "short_factor": [float(v) for v in values[0]],
            "long_factor": [float(v) for v in values[1]],
            "original_max_position_embeddings": rope.original,
        }
        scaling.setdefault("attention_factor", 1.0)
        scaling.setdefault("factor", max(1.0, rope.positions / rope.original))
    share = rope.rotary / config["head_dim"]
    if int(config["head_dim"] * share) == rope.rotary:
        config["partial_rotary_factor"] = share
    plain = {key: config[key] for key in ("rope_theta", "partial_rotary_factor")}
    config["rope_parameters"] = plain | scaling
    if config["model_type"] in BY_KIND:  # only layers without a window are scaled
        base = config.get("rope_local_base_freq", config["rope_theta"])
        near_rope = plain | {"rope_type": "default", "rope_theta": base}
        both = {"full_attention": plain | scaling, "sliding_attention": near_rope}
        config["rope_parameters"] = both
    elif scaling["rope_type"] != "default":
        config["rope_scaling"] = plain | scaling  # as transformers had it before its version 5


def _say_windows(config: dict[str, Any], cfg: Any) -> None:
    """Which layers have a window, one by one."""
    config.pop("sliding_window_pattern", None)
    sliding = getattr(cfg, "sliding", None) or getattr(cfg, "windows", None)
    if sliding is None:
        return
    config["layer_types"] = [
        "sliding_attention" if slides else "full_attention" for slides in sliding
    ]
    config.setdefault("sliding_window", None)


def _take_one_from_norms(found: Published, sizes: dict[str, int]) -> None:
    """llama.cpp's converter adds 1 to the weights of these norms; delta nets keep theirs."""
    for name in sizes:
        if name.endswith("norm.weight") and ".linear_attn." not in name:
            found.edits[name] = lambda values: values - np.float32(1)


def _put_value_heads_together(found: Published, sizes: dict[str, int]) -> None:
    """llama.cpp's converter parts the value heads that have a key in common, and keeps rates."""
    config = found.config
    keys, count = config["linear_num_key_heads"], config["linear_num_value_heads"]
    first = 2 * keys * config["linear_key_head_dim"]

    def together(values: F32) -> F32:
        heads = values.reshape(count // keys, keys, -1, *values.shape[1:])
        tiled: F32 = heads.swapaxes(0, 1).reshape(values.shape)
        return tiled

    def behind_keys(values: F32) -> F32:
        rows: F32 = values.reshape(first + count * config["linear_value_head_dim"], -1)
        return np.concatenate([rows[:first], together(rows[first:])]).reshape(values.shape)

    edits: dict[str, Edit] = {
        "A_log": lambda values: exact_each(exact_log, -together(values)),
        "dt_bias": together,
        "in_proj_qkv.weight": behind_keys,
        "conv1d.weight": behind_keys,
        "in_proj_z.weight": together,
        "in_proj_a.weight": together,
        "in_proj_b.weight": together,
        "out_proj.weight": lambda values: together(values.T).T,
    }
    for name in sizes:
        part = name.partition(".linear_attn.")[2].partition("[")[0]
        if part in edits:
            found.edits[name.partition("[")[0]] = edits[part]


def _put_neighbours_together(found: Published, source: Source) -> None:
    """Rows of queries and keys in the order of a rope that turns neighbours."""
    cfg: Any = source.opened.config
    for wish in source.wishes:
        for part, heads in (("q_proj", cfg.n_heads), ("k_proj", cfg.n_kv_heads)):
            if f".self_attn.{part}." in wish.name:
                order = np.argsort(interleaved_to_halves(heads, cfg.head_dim))
                found.edits[wish.name] = partial(_in_order, order)


def _in_order(order: npt.NDArray[np.intp], values: F32) -> F32:
    return values[order]


def _part_norms(found: Published, sizes: dict[str, int]) -> None:
    """A norm of every head as a tensor of its own."""
    config = found.config
    for part, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
        end = f".self_attn.{part}_layernorm.weight"
        found.split |= {name: config[heads] for name in sizes if name.endswith(end)}


def _store_xielu(found: Published) -> None:
    """The parameters of Apertus' activation, which are metadata in GGUF files."""
    for name, values in found.config.pop("xielu").items():
        for i, value in enumerate(values):
            found.added[f"model.layers.{i}.mlp.act_fn.{name}"] = np.array([value], np.float32)


def _say_no_experts(found: Published, sizes: dict[str, int]) -> None:
    """A dense Granite without rope is a hybrid that has neither states nor experts."""
    config = found.config
    inner = config["intermediate_size"]
    config |= {
        "layer_types": ["full_attention"] * config["num_hidden_layers"],
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "position_embedding_type": None,
        "shared_intermediate_size": inner,
        # Of states that no layer has: what transformers' check of sizes wants.
        "mamba_expand": 1,
        "mamba_n_heads": 1,
        "mamba_d_head": config["hidden_size"],
    }
    parts = {
        "gate_proj": ("input_linear", f"[0:{inner}]"),
        "up_proj": ("input_linear", f"[{inner}:{2 * inner}]"),
        "down_proj": ("output_linear", ""),
    }
    for name in sizes:
        prefix, mlp, part = name.partition(".mlp.")
        if mlp:
            module, _, kind = part.partition(".")
            other, rows = parts[module]
            found.renamed[name] = f"{prefix}.shared_mlp.{other}.{kind}{rows}"


def _fuse_experts(found: Published, sizes: dict[str, int]) -> None:
    """Matrices of experts as gpt-oss has them: [inputs, outputs], gates and ups in turns."""
    config = found.config
    inner, hidden = config["intermediate_size"], config["hidden_size"]
    layouts = {
        "gate_up_proj": Rows(0, 2 * inner, heads=inner, transposed=True),
        "down_proj": Rows(0, hidden, transposed=True),
    }
    for name in sizes:
        stem, experts, part = name.partition(".mlp.experts.")
        if experts:
            tensor = part.partition("[")[0]
            layout = layouts[tensor.removesuffix("_bias")]
            found.layouts[f"{stem}{experts}{tensor}"] = layout
