"""Tiny Llama models in other files than the goldens': changed folders, and GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf_writer import write_gguf
from golden import GOLDENS
from numpy_weights import GGUF_LAYER, GGUF_TOP, Weights, load_hf_folder
from safetensors.numpy import save_file

from slmq.checkpoint import open_checkpoint
from slmq.engine.opening import build_plan
from slmq.engine.options import LoadOptions
from slmq.plan.plan import RecordedPlan

F32 = npt.NDArray[np.float32]


def build(path: Path, *, threads: int = 1, **options: Any) -> RecordedPlan:
    """The recorded plan of a checkpoint; float32 in every part unless asked otherwise."""
    isa = options.pop("isa", None)
    wanted = {"format": "f32", "kv_dtype": "f32", "memory": "small"} | options
    with open_checkpoint(path) as checkpoint:
        return build_plan(checkpoint, LoadOptions(n_threads=threads, **wanted), isa=isa)[0]


def feed(plan: RecordedPlan, sequence: Any, tokens: Sequence[int], cuts: Sequence[int] = ()) -> F32:
    """Appends tokens, cut into chunks at `cuts`; logits of all of them, float32[m, vocab]."""
    ids = np.array(tokens, np.int32)
    logits = []
    for chunk in np.split(ids, sorted(set(cuts) - {0, len(ids)})):
        for part in np.split(chunk, range(plan.native.max_rows, len(chunk), plan.native.max_rows)):
            rows = np.arange(len(part), dtype=np.int32)
            first = rows[: plan.native.max_outputs]
            plan.run(part, [(sequence, len(part))], first)
            logits.append(plan.logits())
            for begin in range(len(first), len(part), len(first)):
                plan.native.run_outputs(rows[begin : begin + len(first)])
                logits.append(plan.logits())
    return np.concatenate(logits)


def logits_of(path: Path, tokens: Sequence[int], **options: Any) -> F32:
    """Logits of one sequence by a fresh plan: float32[m, vocab]."""
    plan = build(path, **options)
    return feed(plan, plan.cache.sequence(), tokens)


def relative_error(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    """Largest difference over largest wanted value."""
    return float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())


def changed(
    name: str,
    folder: Path,
    *,
    config: Callable[[dict[str, Any]], Any] = lambda c: c,
    weights: Callable[[dict[str, Any]], Any] = lambda w: w,
) -> Path:
    """A golden's model with its config or tensors changed in place: a float32 folder."""
    source = GOLDENS / "llama" / name
    folder.mkdir(parents=True, exist_ok=True)
    parsed = json.loads((source / "config.json").read_text("utf-8"))
    config(parsed)
    (folder / "config.json").write_text(json.dumps(parsed), "utf-8")
    tensors: dict[str, Any] = dict(load_hf_folder(source)[1])
    weights(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def copied(name: str, folder: Path, config_file: str = "config.json") -> Path:
    """A golden's folder, with one of its configs as config.json."""
    source = GOLDENS / "llama" / name
    shutil.copytree(source, folder)
    shutil.copy(source / config_file, folder / "config.json")
    return folder


def permute_rope(w: npt.NDArray[Any], n_heads: int) -> npt.NDArray[Any]:
    """What llama.cpp's converter does to q and k: row i of the halves goes to 2i, i + d/2 next."""
    halves = w.reshape(n_heads, 2, -1, *w.shape[1:])
    return np.asarray(halves.swapaxes(1, 2).reshape(w.shape))


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face tensor."""
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        layer, part = module.removeprefix("model.layers.").split(".", 1)
        short = {long: short for short, long in GGUF_LAYER.items()}
        return f"blk.{layer}.{short[part]}.{kind}"
    return f"{ {long: short for short, long in GGUF_TOP.items()}[module] }.{kind}"


def to_gguf(
    name: str,
    path: Path,
    stored: str = "f32",
    metadata: Mapping[str, Any] | None = None,
    *,
    tensors: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """A golden's model as llama.cpp's converter would write it.

    `stored`: type of the matrices (f32, f16, q8_0, q4_0, q4_1); vectors are float32, as are
    matrices whose rows are no multiple of 32 in a quantized file. Llama 3's rope scaling becomes
    the divisors of `rope_freqs.weight`, linear scaling metadata. `metadata` overrides or adds.
    `tensors` stand in place of the golden's, `more` beside them.
    """
    source = GOLDENS / "llama" / name
    config, weights = load_hf_folder(source)
    hf = json.loads((source / "config.json").read_text("utf-8"))
    written: dict[str, Any] = {}
    for key, w in weights.items():
        part, rows = key.split(".")[-2], w
        if part in ("q_proj", "k_proj"):
            rows = permute_rope(w, config.n_heads if part == "q_proj" else config.n_kv_heads)
        kind = stored if w.ndim == 2 and (stored == "f16" or w.shape[1] % 32 == 0) else "f32"
        if kind == "f32":
            written[gguf_name(key)] = rows
        else:
            written[gguf_name(key)] = rows.astype(np.float16) if kind == "f16" else (rows, kind)
    rope = hf["rope_parameters"]
    keys: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.vocab_size": hf["vocab_size"],
        "llama.embedding_length": hf["hidden_size"],
        "llama.feed_forward_length": hf["intermediate_size"],
        "llama.block_count": hf["num_hidden_layers"],
        "llama.attention.head_count": hf["num_attention_heads"],
        "llama.attention.head_count_kv": hf["num_key_value_heads"],
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": hf["rms_norm_eps"],
        "llama.context_length": hf["max_position_embeddings"],
        "llama.rope.freq_base": rope["rope_theta"],
    }
    if rope["rope_type"] == "linear":
        keys |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
        written["rope_freqs.weight"] = (plain / config.inv_freq).astype(np.float32)
    if tensors is not None:
        written = dict(tensors)
    return write_gguf(path, keys | dict(metadata or {}), written | dict(more or {}))


def dequantized(name: str, stored: str) -> Weights:
    """A golden's weights as a GGUF of that type holds them: float32 values."""
    import gguf

    weights = load_hf_folder(GOLDENS / "llama" / name)[1]
    kind = gguf.GGMLQuantizationType[stored.upper()]
    for key, w in weights.items():
        if w.ndim == 2 and w.shape[1] % 32 == 0:
            weights[key] = gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind)
    return weights
