"""Goldens of any family in other files: GGUF as llama.cpp writes it, and changed folders."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf_writer import write_gguf
from llama_files import permute_rope
from numpy_llama import rope_inv_freq
from numpy_weights import Weights, read_safetensors
from safetensors.numpy import save_file

# llama.cpp's architecture of a model type, where the two differ.
ARCHITECTURES = {
    "mistral": "llama",
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4",
    "gpt_neox": "gptneox",
    "phi": "phi2",
    "olmo3": "olmo2",
    "granitemoehybrid": "granite",  # without experts and states
    "hunyuan_v1_dense": "hunyuan-dense",
    "ministral3": "mistral3",
    "qwen3_5_text": "qwen35",
    "qwen3_moe": "qwen3moe",
    "lfm2_moe": "lfm2moe",
    "gpt_oss": "gpt-oss",
}
# Whose norms it adds 1 to.
OFFSET_NORMS = ("gemma", "gemma2", "gemma3", "qwen35")
# Whose q and k llama.cpp's converter permutes.
PERMUTED = ("llama", "smollm3", "granite", "arcee", "mistral3", "granitemoe")
# One layer of so many has no window, unless a file says otherwise.
PATTERNS = {"gemma2": 2, "gemma3": 6}
# What GPT-2's configurations call otherwise.
GPT2_KEYS = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
}


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json."""
    parsed: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return parsed


def language_model(source: Path) -> tuple[dict[str, Any], Weights]:
    """Configuration and tensors, without a vision tower and the names that it asks for."""
    config, tensors = read_config(source), read_safetensors(source / "model.safetensors")
    if "text_config" not in config:
        return config, tensors
    named: Weights = {}
    for name, w in tensors.items():
        before, prefix, after = name.partition("language_model.")
        if prefix:
            named[before + after] = w
    return config["text_config"] | {"model_type": config["model_type"]}, named


def main_rope(config: Mapping[str, Any]) -> Any:
    """The rope parameters; of layers without a window, where those with one have their own."""
    both = config.get("rope_parameters", {"rope_type": "default", "rope_theta": 10000.0})
    return both.get("full_attention", both)


def rewritten(
    source: Path,
    folder: Path,
    config: Callable[[dict[str, Any]], Any],
    weights: Callable[[Weights], Any] = lambda w: w,
) -> Path:
    """A golden's model with its config, and weights, changed in place: a float32 folder."""
    folder.mkdir(parents=True, exist_ok=True)
    parsed, tensors = read_config(source), read_safetensors(source / "model.safetensors")
    config(parsed)
    weights(tensors)
    (folder / "config.json").write_text(json.dumps(parsed), "utf-8")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def gguf_terms(config: Mapping[str, Any]) -> tuple[dict[str, Any], str, Any, dict[str, Any]]:
    """A configuration by one set of keys; architecture, names of tensors, heads of q and k."""
    config = {GPT2_KEYS.get(k, k): v for k, v in config.items()}
    architecture = ARCHITECTURES.get(config["model_type"], config["model_type"])
    number = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config.get("num_key_value_heads")}
    return config, architecture, names, heads


def to_gguf(source: Path, path: Path, stored: str = "f32") -> Path:
    """A golden's model under the `gguf` package's names of keys and tensors.

    `stored`: type of the matrices; vectors are float32. Longrope becomes tensors of divisors and
    the factor of sines and cosines, yarn metadata.
    """
    config, weights = language_model(source)
    config, architecture, names, heads = gguf_terms(config)
    tensors: dict[str, Any] = {}
    for name, w in laid_out(config, weights).items():
        part = name.split(".")[-2]
        permuted = architecture in PERMUTED and part in heads
        rows = permute_rope(w, heads[part]) if permuted else w
        offset = architecture in OFFSET_NORMS and "linear_attn" not in name
        if offset and name.endswith("norm.weight"):
            rows = w + np.float32(1)
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        kept = any(part in name for part in ("norm", "wpe", "conv.conv", "conv1d"))
        plain = w.ndim == 1 or stored == "f32" or kept or name.endswith(".bias")
        tensors[written] = rows if plain else (rows, stored)
    keys, divisors = gguf_keys(config, architecture)
    if architecture == "apertus":
        keys |= xielu_keys(weights, config["num_hidden_layers"])
    return write_gguf(path, keys | tokenizer_keys(config["vocab_size"]), tensors | divisors)


def gguf_pairs(source: Path, pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Pairs of an adapter, A [rank, k] and B [n, rank] by module, as a GGUF file has them.

    B lies as rows of the weight do, so it is laid out as one; both parts of a matrix that is split
    keep all of A.
    """
    config, _ = language_model(source)
    config, architecture, names, heads = gguf_terms(config)
    found: dict[str, tuple[Any, Any]] = {}
    for module, (a, b) in pairs.items():
        stored = b.T if config["model_type"] == "gpt2" else b
        for name, w in laid_out(config, {f"{module}.weight": stored}).items():
            part = name.split(".")[-2]
            rows = permute_rope(w, heads[part]) if architecture in PERMUTED and part in heads else w
            written = names.get_name(name, try_suffixes=(".weight",))
            found[written.removesuffix(".weight")] = a, np.ascontiguousarray(rows)
    return found


def laid_out(config: Mapping[str, Any], weights: Weights) -> Weights:
    """Weights in the layout of llama.cpp's converter, where that is not the model's own.

    GPT-2's matrices of layers are no longer transposed, GPT-NeoX's q, k and v are apart, and the
    norms of StableLM's heads are rows of one tensor.
    """
    if config["model_type"] == "gpt2":
        return {k: w.T if ".c_" in k and w.ndim == 2 else w for k, w in weights.items()}
    if config["model_type"] == "gpt_neox":
        heads = config["num_attention_heads"]
        return {
            k: np.concatenate(w.reshape(heads, 3, -1, *w.shape[1:]), 1).reshape(w.shape)
            if "query_key_value" in k
            else w
            for k, w in weights.items()
        }
    if config["model_type"] == "granitemoehybrid":
        return parted(weights)
    if config["model_type"] == "granitemoe":
        return granite_experts(weights)
    if config["model_type"] == "gpt_oss":
        return parted_experts(weights)
    if config["model_type"] == "lfm2":
        return {k: w[:, 0] if "conv.conv.weight" in k else w for k, w in weights.items()}
    if config["model_type"] == "qwen3_5_text":
        return delta_laid_out(config, weights)
    if any(".experts." in k for k in weights):
        return stacked_experts(weights)
    if config["model_type"].startswith(("gemma4", "bitnet")):
        return renamed(weights)
    if config["model_type"] == "apertus":  # parameters of xIELU are metadata
        return {k: w for k, w in weights.items() if "act_fn" not in k}
    stacked = {k for k in weights if ".norms." in k}
    others = {k: w for k, w in weights.items() if k not in stacked}
    for stem in {k.split("norms.")[0] for k in stacked}:
        count = sum(k.startswith(stem) for k in stacked)
        rows = [weights[f"{stem}norms.{i}.weight"] for i in range(count)]
        others[f"{stem}weight"] = np.stack(rows)
    return others


def stacked_experts(weights: Weights) -> Weights:
    """A matrix of every expert as one tensor, without the number in its name."""
    found: Weights = {}
    stacks: dict[str, list[Any]] = {}
    weights = {
        k.replace("expert_bias", "expert_bias.bias"): w[:, 0] if "conv.conv.weight" in k else w
        for k, w in weights.items()
    }
    for name in sorted(weights, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        plain = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        if plain == name:
            found[name] = weights[name]
        else:
            # llama.cpp's converter knows LFM2's without what all names begin with.
            short = plain.removeprefix("model.") if "feed_forward" in plain else plain
            stacks.setdefault(short, []).append(weights[name])
    return found | {name: np.stack(parts) for name, parts in stacks.items()}


def granite_experts(weights: Weights) -> Weights:
    """A Granite with experts whose gates and ups are apart."""
    found: Weights = {}
    for name, w in weights.items():
        stem = name.split("block_sparse_moe")[0] + "mlp.experts"
        if "input_linear" in name:
            found[f"{stem}.gate_proj.weight"], found[f"{stem}.up_proj.weight"] = np.split(w, 2, 1)
        elif "output_linear" in name:
            found[f"{stem}.down_proj.weight"] = w
        else:
            found[name] = w
    return found


def parted_experts(weights: Weights) -> Weights:
    """A gpt-oss whose experts' gates and ups are apart, all of them [outputs, inputs]."""
    found: Weights = {}
    for name, w in weights.items():
        stem = name.partition("gate_up_proj")[0]
        if name.endswith("gate_up_proj"):
            for part, first in (("gate", 0), ("up", 1)):
                found[f"{stem}{part}_proj.weight"] = w[:, :, first::2].swapaxes(1, 2)
        elif name.endswith("gate_up_proj_bias"):
            for part, first in (("gate", 0), ("up", 1)):
                found[f"{stem}{part}_proj.bias"] = w[:, first::2]
        elif name.endswith("down_proj"):
            found[f"{name}.weight"] = w.swapaxes(1, 2)
        else:
            plain = name.replace("down_proj_bias", "down_proj.bias")
            found[plain.replace("sinks", "sinks.weight")] = w
    return {name: np.ascontiguousarray(w) for name, w in found.items()}


def renamed(weights: Weights) -> Weights:
    """Gemma 4's and BitNet's tensors under the names that the package has."""
    others = {
        "layer_scalar": "layer_scalar.weight",
        "self_attn.attn_sub_norm": "self_attn.inner_attn_ln",
        "mlp.ffn_sub_norm": "mlp.ffn_layernorm",
    }
    for name, other in others.items():
        weights = {k.replace(name, other): w for k, w in weights.items()}
    return weights


def delta_laid_out(config: Mapping[str, Any], weights: Weights) -> Weights:
    """A Qwen3.5 whose value heads with a key in common stand apart; rates without logarithms."""
    keys, count = config["linear_num_key_heads"], config["linear_num_value_heads"]
    channels = 2 * keys * config["linear_key_head_dim"]

    def tiled(w: Any, axis: int = 0) -> Any:
        w = np.moveaxis(w, axis, 0)
        heads = w.reshape(keys, count // keys, -1, *w.shape[1:])
        return np.moveaxis(heads.swapaxes(0, 1).reshape(w.shape), 0, axis)

    found: Weights = {}
    for name, w in weights.items():
        part = name.partition(".linear_attn.")[2]
        if part == "A_log":
            found[name] = tiled(-np.exp(w.astype(np.float64)).astype(np.float32))
        elif part == "dt_bias":
            found[name.replace("dt_bias", "dt_proj.bias")] = tiled(w)
        elif part in ("in_proj_qkv.weight", "conv1d.weight"):
            rows = w[:, 0] if part == "conv1d.weight" else w
            found[name] = np.concatenate([rows[:channels], tiled(rows[channels:])])
        elif part == "out_proj.weight":
            found[name] = tiled(w, 1)
        elif part.startswith("in_proj_"):
            found[name] = tiled(w)
        else:
            found[name] = w
    return found


def delta_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of a gated delta net."""
    states, heads = gguf.Keys.SSM, config["linear_num_value_heads"]
    return {
        states.CONV_KERNEL: config["linear_conv_kernel_dim"],
        states.STATE_SIZE: config["linear_key_head_dim"],
        states.GROUP_COUNT: config["linear_num_key_heads"],
        states.TIME_STEP_RANK: heads,
        states.INNER_SIZE: heads * config["linear_value_head_dim"],
        gguf.Keys.Rope.DIMENSION_SECTIONS: [1, 1, 0, 0],  # of pictures; llama.cpp wants them said
        "{arch}.attention.recurrent_layers": [
            kind == "linear_attention" for kind in config["layer_types"]
        ],
    }


def parted(weights: Weights) -> Weights:
    """A dense Granite 4 as a Granite: gate and up apart."""
    found: Weights = {}
    for name, w in weights.items():
        if "input_linear" in name:
            stem = name.replace("shared_mlp.input_linear", "mlp.{}_proj")
            found |= {
                stem.format(p): x for p, x in zip(("gate", "up"), np.split(w, 2), strict=True)
            }
        else:
            found[name.replace("shared_mlp.output_linear", "mlp.down_proj")] = w
    return found


def tokenizer_keys(size: int) -> dict[str, Any]:
    """A SentencePiece tokenizer of `size` ids: three special ones and letters."""
    letters = [chr(0x61 + i % 26) + chr(0x41 + i // 26) for i in range(size - 3)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *letters],
        "tokenizer.ggml.scores": [float(-i) for i in range(size)],
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * (size - 3)],
    }


def gguf_keys(config: Mapping[str, Any], arch: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata, and tensors of rope divisors."""
    model, attention, rope = gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope
    scaling = main_rope(config)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    keys = {
        model.VOCAB_SIZE: config["vocab_size"],
        model.EMBEDDING_LENGTH: config["hidden_size"],
        model.FEED_FORWARD_LENGTH: config.get("intermediate_size") or config.get("n_inner"),
        model.BLOCK_COUNT: config["num_hidden_layers"],
        model.CONTEXT_LENGTH: config["max_position_embeddings"],
        attention.HEAD_COUNT: config["num_attention_heads"],
        attention.HEAD_COUNT_KV: config.get("num_key_value_heads"),
        attention.LAYERNORM_RMS_EPS: config.get("rms_norm_eps"),
        rope.FREQ_BASE: scaling["rope_theta"],
        rope.DIMENSION_COUNT: int(head_dim * scaling.get("partial_rotary_factor", 1.0)),
    }
    if config.get("head_dim"):
        keys[attention.KEY_LENGTH] = keys[attention.VALUE_LENGTH] = head_dim
    if "layer_norm_eps" in config:
        keys[attention.LAYERNORM_EPS] = config["layer_norm_eps"]
        del keys[attention.LAYERNORM_RMS_EPS]
    if "use_parallel_residual" in config:
        keys[model.USE_PARALLEL_RESIDUAL] = config["use_parallel_residual"]
    if arch == "gpt2":
        keys[model.FEED_FORWARD_LENGTH] = config["n_inner"] or 4 * config["hidden_size"]
        del keys[rope.FREQ_BASE], keys[rope.DIMENSION_COUNT]
    if arch == "phi3":
        keys[attention.SLIDING_WINDOW] = config["sliding_window"] or 0
    if arch in ("olmo2", "exaone4", "gpt-oss") and config.get("sliding_window"):
        keys[attention.SLIDING_WINDOW] = config["sliding_window"]
        slides = [kind == "sliding_attention" for kind in config["layer_types"]]
        keys[attention.SLIDING_WINDOW_PATTERN] = slides
    if arch in PATTERNS:
        keys |= gemma_keys(config, PATTERNS[arch])
    if arch in ("granite", "granitemoe"):
        keys |= granite_keys(config)
    if arch in ("lfm2", "lfm2moe"):
        keys |= lfm2_keys(config)
    if config.get("num_experts_per_tok"):
        keys[model.EXPERT_COUNT] = config.get("num_experts") or config["num_local_experts"]
        keys[model.EXPERT_USED_COUNT] = config["num_experts_per_tok"]
        keys[model.EXPERT_FEED_FORWARD_LENGTH] = config.get("moe_intermediate_size") or (
            config["intermediate_size"] if arch == "gpt-oss" else None
        )
        keys[model.LEADING_DENSE_BLOCK_COUNT] = config.get("num_dense_layers")
        keys[model.EXPERT_WEIGHTS_SCALE] = config.get("routed_scaling_factor")
        if arch == "lfm2moe":
            keys[model.EXPERT_GATING_FUNC] = int(gguf.ExpertGatingFuncType.SIGMOID)
    if arch in ("qwen35", "gemma4"):
        keys |= (delta_keys if arch == "qwen35" else gemma4_keys)(config)
    scalings, tensors = rope_keys(config, arch, head_dim)
    keys |= scalings
    named = {key.format(arch=arch): value for key, value in keys.items() if value is not None}
    return {"general.architecture": arch} | named, tensors


def rope_keys(
    config: Mapping[str, Any], arch: str, head_dim: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata of a rope's scaling, and tensors of its divisors."""
    attention, rope = gguf.Keys.Attention, gguf.Keys.Rope
    scaling = main_rope(config)
    keys: dict[str, Any] = {}
    original = scaling.get("original_max_position_embeddings")
    tensors: dict[str, Any] = {}
    if scaling["rope_type"] == "linear":
        keys[rope.SCALING_TYPE] = "linear"
        keys[rope.SCALING_FACTOR] = scaling["factor"]
    if scaling["rope_type"] == "yarn":
        keys[rope.SCALING_TYPE] = "yarn"
        keys[rope.SCALING_FACTOR] = scaling["factor"]
        keys[rope.SCALING_ORIG_CTX_LEN] = original
        keys[rope.SCALING_YARN_BETA_FAST] = scaling.get("beta_fast")
        keys[rope.SCALING_YARN_BETA_SLOW] = scaling.get("beta_slow")
    if arch == "mistral3":
        keys[rope.SCALING_YARN_LOG_MUL] = scaling["mscale_all_dim"]
        keys[attention.TEMPERATURE_SCALE] = scaling["llama_4_scaling_beta"]
    if scaling["rope_type"] == "dynamic":  # Hunyuan's, which is no more than another base
        stretch = scaling["alpha"] ** (head_dim / (head_dim - 2))
        keys[rope.FREQ_BASE] = scaling["rope_theta"] * stretch
    if scaling["rope_type"] == "llama3":
        base = scaling["rope_theta"]
        plain = rope_inv_freq(head_dim, base, {})
        divisors = plain / rope_inv_freq(head_dim, base, scaling)
        tensors["rope_freqs.weight"] = divisors.astype(np.float32)
    if scaling["rope_type"] == "proportional":  # a divisor that leaves a channel where it is
        dim = gemma4_heads(config)[0]
        turning = int(scaling["partial_rotary_factor"] * dim // 2)
        divisors = np.where(np.arange(dim // 2) < turning, 1.0, 1e30)
        tensors["rope_freqs.weight"] = divisors.astype(np.float32)
    if scaling["rope_type"] == "longrope":
        ratio = config["max_position_embeddings"] / original
        keys[rope.SCALING_ATTN_FACTOR] = math.sqrt(1 + math.log(ratio) / math.log(original))
        keys[rope.SCALING_ORIG_CTX_LEN] = original
        for kind in ("short", "long"):
            divisors = np.array(scaling[f"{kind}_factor"], np.float32)
            tensors[f"rope_factors_{kind}.weight"] = divisors
    return keys, tensors


def gemma4_heads(config: Mapping[str, Any]) -> tuple[int, int]:
    """Channels and number of key heads of layers without a window."""
    last = config | config["per_layer_config"].get(str(config["num_hidden_layers"] - 1), {})
    return last["head_dim"], last["num_key_value_heads"]


def gemma4_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of Gemma 4: what differs by the type of layer, and what the last layers share."""
    model, attention, rope = gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope
    layers, shared = config["num_hidden_layers"], config["num_kv_shared_layers"]
    slides = [kind == "sliding_attention" for kind in config["layer_types"]]
    width, (dim, heads) = config["intermediate_size"], gemma4_heads(config)
    keys = {
        attention.KEY_LENGTH: dim,
        attention.VALUE_LENGTH: dim,
        attention.KEY_LENGTH_SWA: config["head_dim"],
        attention.VALUE_LENGTH_SWA: config["head_dim"],
        attention.SHARED_KV_LAYERS: shared,
        attention.SLIDING_WINDOW: config["sliding_window"],
        attention.SLIDING_WINDOW_PATTERN: slides,
        model.EMBD_LENGTH_PER_LAYER_INP: config["hidden_size_per_layer_input"],
        # Without the key llama.cpp takes 30.
        model.FINAL_LOGIT_SOFTCAPPING: config["final_logit_softcapping"] or 0.0,
        rope.DIMENSION_COUNT: dim,
        rope.DIMENSION_COUNT_SWA: config["head_dim"],
        rope.FREQ_BASE_SWA: config["rope_parameters"]["sliding_attention"]["rope_theta"],
    }
    if config["use_double_wide_mlp"]:
        keys[model.FEED_FORWARD_LENGTH] = [width] * (layers - shared) + [2 * width] * shared
    if heads != config["num_key_value_heads"]:
        counts = [config["num_key_value_heads"] if near else heads for near in slides]
        keys[attention.HEAD_COUNT_KV] = counts
    return keys


def lfm2_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of LFM2: convolutions have no key heads, and the MLP's width is the real one."""
    inner = config["intermediate_size"]
    if config.get("block_auto_adjust_ff_dim"):
        inner = int(config["block_ffn_dim_multiplier"] * int(2 * inner / 3))
        inner = -(-inner // config["block_multiple_of"]) * config["block_multiple_of"]
    heads = config["num_key_value_heads"]
    counts = [heads if kind == "full_attention" else 0 for kind in config["layer_types"]]
    return {
        gguf.Keys.LLM.FEED_FORWARD_LENGTH: inner,
        gguf.Keys.Attention.HEAD_COUNT_KV: counts,
        gguf.Keys.Attention.LAYERNORM_RMS_EPS: config["norm_eps"],
        gguf.Keys.ShortConv.L_CACHE: config["conv_L_cache"],
    }


def granite_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of Granite's factors."""
    model, attention, rope = gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope
    keys = {
        model.EMBEDDING_SCALE: config["embedding_multiplier"],
        model.RESIDUAL_SCALE: config["residual_multiplier"],
        attention.SCALE: config["attention_multiplier"],
        model.LOGIT_SCALE: config["logits_scaling"],
    }
    if config["model_type"] == "granitemoehybrid":
        keys[model.FEED_FORWARD_LENGTH] = config["shared_intermediate_size"]
        keys[rope.SCALING_FINETUNED] = config["position_embedding_type"] == "rope"
    return keys


def xielu_keys(weights: Weights, layers: int) -> dict[str, Any]:
    """Metadata of Apertus' activation."""
    keys = gguf.Keys.xIELU
    names = {keys.ALPHA_P: "alpha_p", keys.ALPHA_N: "alpha_n", keys.BETA: "beta", keys.EPS: "eps"}
    prefix = "model.layers.{}.mlp.act_fn.{}"
    return {
        key: [float(weights[prefix.format(i, name)].reshape(-1)[0]) for i in range(layers)]
        for key, name in names.items()
    }


def gemma_keys(config: Mapping[str, Any], pattern: int) -> dict[str, Any]:
    """Metadata of Gemma 2 and 3: what is as llama.cpp has it without a key gets none."""
    model, attention, rope = gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope
    keys = {attention.SLIDING_WINDOW: config["sliding_window"]}
    for key, name in {
        model.ATTN_LOGIT_SOFTCAPPING: "attn_logit_softcapping",
        model.FINAL_LOGIT_SOFTCAPPING: "final_logit_softcapping",
    }.items():
        if config[name] is not None:
            keys[key] = config[name]
    slides = [kind == "sliding_attention" for kind in config["layer_types"]]
    if slides != [(i + 1) % pattern != 0 for i in range(len(slides))]:
        keys[attention.SLIDING_WINDOW_PATTERN] = slides
    local = config["rope_parameters"].get("sliding_attention", {}).get("rope_theta", 10000.0)
    if local != 10000.0:
        keys[rope.FREQ_BASE_SWA] = local
    return keys
