"""Whole tiny Llama models from GGUF files of every type and from GPTQ, AWQ and compressed-tensors.

The reference is the plain NumPy model over the dequantized values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ggml_packer import SIZES, random_tensor
from gguf_writer import write_gguf
from int_packer import Known, config_of, known_weight, tensors_of, write_folder
from llama_files import build, feed, logits_of, relative_error
from numpy_llama import LlamaConfig, NumpyLlama
from numpy_weights import load_gguf

import slmq
from slmq import CheckpointError
from slmq.checkpoint import open_checkpoint
from slmq.checkpoint.foreign.ggml_blocks import QUANTIZED_TYPES

# Types with codebooks have tests of their own: tests/checkpoint/test_codebooks.py.
PACKED = [kind for kind in QUANTIZED_TYPES if kind in SIZES]
TOKENS = [3, 17, 0, 88, 41, 41, 5, 60, 2]
VOCAB, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM = 96, 256, 512, 4, 2, 64
SIZES = {  # GGUF name: (rows, columns)
    "attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}
METADATA = {
    "general.architecture": "llama",
    "llama.vocab_size": VOCAB,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INNER,
    "llama.block_count": 1,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.key_length": HEAD_DIM,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.context_length": 128,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(chr(0x4E00 + i) for i in range(VOCAB - 3))],
    "tokenizer.ggml.scores": [float(-i) for i in range(VOCAB)],
    "tokenizer.ggml.token_type": [2, 3, 3, *[1] * (VOCAB - 3)],
}
# What llama.cpp's Q4_K_M makes of a model's tensors: four, five and six bits side by side.
MIX = {"attn_v": "q6_k", "ffn_down": "q6_k", "token_embd": "q6_k", "attn_k": "q5_k"}


def gguf_model(path: Path, kinds: dict[str, str], rest: str, *, tied: bool = False) -> Path:
    """A model of random blocks: each tensor of its type in `kinds`, or of the type `rest`."""
    rng = np.random.default_rng(11)
    tensors: dict[str, Any] = {}
    named = {f"blk.0.{name}": size for name, size in SIZES.items()}
    top = ("token_embd",) if tied else ("token_embd", "output")
    for name, size in (dict.fromkeys(top, (VOCAB, HIDDEN)) | named).items():
        kind = kinds.get(name.removeprefix("blk.0."), rest)
        if kind in QUANTIZED_TYPES:
            stored = random_tensor(kind, *size, rng, size=0.03)
            tensors[f"{name}.weight"] = (stored, kind)
        else:
            values = (rng.standard_normal(size) * 0.05).astype(np.float32)
            tensors[f"{name}.weight"] = (values, kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        tensors[f"{name}.weight"] = rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32)
    return write_gguf(path, METADATA, tensors)


def rounded_to_float16(weights: dict[str, Any]) -> dict[str, Any]:
    return {
        name: w.astype(np.float16).astype(np.float32) if w.ndim == 2 else w
        for name, w in weights.items()
    }


@pytest.mark.parametrize("kind", [*PACKED, "bf16", "q4_k_m"])
def test_gguf_of_every_type_is_its_dequantized_model(kind: str, tmp_path: Path) -> None:
    mixed = kind == "q4_k_m"
    path = gguf_model(tmp_path / "m.gguf", MIX if mixed else {}, "q4_k" if mixed else kind)
    config, weights, _ = load_gguf(path)
    want = NumpyLlama(config, weights, np.float64).logits(TOKENS)
    assert relative_error(logits_of(path, TOKENS, format="f32"), want) < 5e-6
    got = logits_of(path, TOKENS, format=None, activations="exact")
    if kind != "bf16":
        assert relative_error(got, want) < 5e-4
        return
    halves = NumpyLlama(config, rounded_to_float16(weights), np.float64).logits(TOKENS)
    assert relative_error(got, halves) < 5e-6
    assert relative_error(got, want) < 2e-3


@pytest.mark.parametrize("kind", ["q5_1", "q2_k", "q4_k", "q6_k"])
def test_a_table_that_is_embedding_and_head(kind: str, tmp_path: Path) -> None:
    path = gguf_model(tmp_path / "m.gguf", {}, kind, tied=True)
    config, weights, _ = load_gguf(path)
    want = NumpyLlama(config, weights, np.float64).logits(TOKENS)
    got = logits_of(path, TOKENS, format=None, activations="exact")
    assert relative_error(got, want) < 5e-4


def test_parts_of_a_mix_are_kept_side_by_side(tmp_path: Path) -> None:
    plan = build(gguf_model(tmp_path / "m.gguf", MIX, "q4_k"), format=None)
    formats = [step.format for step in plan.steps if step.weight_bytes or step.op == "embed"]
    assert formats == ["q6k", "q4k+q5k+q6k", "q4k", "q4k", "q6k", "q4k"]


@pytest.mark.parametrize("kind", ["q5_0", "q5_1", "q2_k", "q3_k", "q4_k_m"])
def test_prefill_is_decode(kind: str, tmp_path: Path) -> None:
    mixed = kind == "q4_k_m"
    path = gguf_model(tmp_path / "m.gguf", MIX if mixed else {}, "q4_k" if mixed else kind)
    plan = build(path, format=None)
    whole = feed(plan, plan.cache.sequence(), TOKENS)
    one_by_one = feed(plan, plan.cache.sequence(), TOKENS, cuts=range(1, len(TOKENS)))
    assert np.array_equal(whole, one_by_one)


# -- folders -------------------------------------------------------------------------------------

HF_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CT = "compressed-tensors"
FOLDERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gptq": ("gptq", {"symmetric": True}, {}),
    "gptq v2, zeros, 32": ("gptq", {"group_size": 32}, {"version": 2}),
    "gptq desc_act": ("gptq", {"desc_act": True, "group_size": 64}, {}),
    "gptq desc_act, uneven": ("gptq", {"desc_act": True, "group_size": 96}, {}),
    "gptq 8 bits, rows": ("gptq", {"bits": 8, "symmetric": True, "group_size": -1}, {}),
    "awq": ("awq", {}, {}),
    "awq 64": ("awq", {"group_size": 64}, {}),
    "compressed-tensors": (CT, {"symmetric": True, "scale_dtype": "bfloat16"}, {}),
    "compressed-tensors zeros": (CT, {"group_size": 32}, {}),
    "compressed-tensors g_idx": (CT, {"desc_act": True}, {}),
}  # fmt: skip


def quantized_folder(path: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A folder as its tool writes it: linear layers in parts, the rest float16.

    Returns its configuration and its values by Hugging Face's names.
    """
    method, options, layout = FOLDERS[name]
    symmetric = bool(options.get("symmetric"))
    if method == CT:
        layout = layout | {"symmetric": symmetric}
    rng = np.random.default_rng(12)
    tensors: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for seed, (short, long) in enumerate(HF_NAMES.items()):
        stem = f"model.layers.0.{long}"
        x: Known = known_weight(*SIZES[short], seed=seed, **options)
        tensors |= {f"{stem}.{part}": t for part, t in tensors_of(method, x, **layout).items()}
        values[f"{stem}.weight"] = x.values()
        if method == "gptq":  # AutoGPTQ writes one whether the model has one or not
            tensors[f"{stem}.bias"] = np.zeros(SIZES[short][0], np.float16)
    for top, size in [("model.embed_tokens", (VOCAB, HIDDEN)), ("lm_head", (VOCAB, HIDDEN))]:
        tensors[f"{top}.weight"] = (rng.standard_normal(size) * 0.05).astype(np.float16)
    norms = ("model.norm", "model.layers.0.input_layernorm")
    for norm in (*norms, "model.layers.0.post_attention_layernorm"):
        tensors[f"{norm}.weight"] = rng.uniform(0.5, 1.5, HIDDEN).astype(np.float16)
    plain = {n: t for n, t in tensors.items() if n.endswith(".weight")}
    values |= {n: t.astype(np.float32) for n, t in plain.items()}
    config = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "head_dim": HEAD_DIM,
        "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5, "max_position_embeddings": 128,
        "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    version = {"checkpoint_format": "gptq_v2"} if layout.get("version") == 2 else {}
    quantization = config_of(
        method,
        bits=options.get("bits", 4),
        group_size=options.get("group_size", 128),
        symmetric=symmetric,
        **version,
    )
    scales = options.get("scale_dtype", "float16")
    write_folder(path, config | {"quantization_config": quantization}, tensors, scales)
    return config, values


@pytest.mark.parametrize("name", FOLDERS)
def test_quantized_folder_is_its_dequantized_model(name: str, tmp_path: Path) -> None:
    hf, values = quantized_folder(tmp_path, name)
    config = LlamaConfig.from_hf(hf)
    want = NumpyLlama(config, values, np.float64).logits(TOKENS)
    assert relative_error(logits_of(tmp_path, TOKENS, format="f32"), want) < 5e-6
    got = logits_of(tmp_path, TOKENS, format=None, activations="exact")
    if "uneven" in name:  # kept as float16, as the tools themselves compute
        halves = NumpyLlama(config, rounded_to_float16(values), np.float64).logits(TOKENS)
        assert relative_error(got, halves) < 5e-6
        assert relative_error(got, want) < 2e-3
    else:
        assert relative_error(got, want) < 5e-4


@pytest.mark.parametrize("name", ["gptq", "awq 64", "compressed-tensors zeros"])
def test_prefill_of_a_folder_is_decode(name: str, tmp_path: Path) -> None:
    quantized_folder(tmp_path, name)
    plan = build(tmp_path, format=None)
    whole = feed(plan, plan.cache.sequence(), TOKENS)
    one_by_one = feed(plan, plan.cache.sequence(), TOKENS, cuts=range(1, len(TOKENS)))
    assert np.array_equal(whole, one_by_one)


@pytest.mark.parametrize("threads", [1, 3])
def test_columns_in_orders_of_their_own(threads: int, tmp_path: Path) -> None:
    """Each matrix has another order: q, k and v of one step, gate and up of one step."""
    quantized_folder(tmp_path / "gptq", "gptq desc_act")
    plan = build(tmp_path / "gptq", format=None, threads=threads)
    assert [step.op for step in plan.steps].count("gather") == 7
    whole = feed(plan, plan.cache.sequence(), TOKENS)
    one_by_one = feed(plan, plan.cache.sequence(), TOKENS, cuts=range(1, len(TOKENS)))
    assert np.array_equal(whole, one_by_one)


@pytest.mark.parametrize("kind", [*PACKED, "q4_k_m", *FOLDERS])
def test_a_folder_of_packed_weights_answers_the_same(kind: str, tmp_path: Path) -> None:
    """Every format in a file of ours: mapped, read, and converted once more."""
    source = tmp_path / "m.gguf"
    if kind in FOLDERS:
        source = tmp_path / "source"
        quantized_folder(source, kind)
    else:
        mixed = kind == "q4_k_m"
        gguf_model(source, MIX if mixed else {}, "q4_k" if mixed else kind)
    want = logits_of(source, TOKENS, format=None)
    folder = slmq.convert(source, tmp_path / "packed", n_threads=2)
    for memory in ("mmap", "small"):
        assert np.array_equal(logits_of(folder, TOKENS, format=None, memory=memory), want)


def test_a_folder_of_packed_weights_keeps_the_orders(tmp_path: Path) -> None:
    quantized_folder(tmp_path / "gptq", "gptq desc_act")
    want = logits_of(tmp_path / "gptq", TOKENS, format=None)
    folder = slmq.convert(tmp_path / "gptq", tmp_path / "packed", n_threads=2)
    for memory in ("mmap", "small"):
        assert np.array_equal(logits_of(folder, TOKENS, format=None, memory=memory), want)
    again = slmq.convert(folder, tmp_path / "again")
    files = [path / "model.safetensors" for path in (folder, again)]
    assert files[0].read_bytes() == files[1].read_bytes()

    name = "model.layers.0.self_attn.k_proj.weight.columns"
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors[name].shape == (HIDDEN,)
        at = checkpoint.span(name)[1]  # type: ignore[attr-defined]
        order = checkpoint.raw(name).view("<i4").copy()
    data = bytearray(files[0].read_bytes())
    for broken in (order[:1].repeat(HIDDEN), order - 1, order << 20):  # hostile, or damaged
        data[at : at + 4 * HIDDEN] = broken.astype("<i4").tobytes()
        files[0].unlink()
        files[0].write_bytes(data)
        with pytest.raises(CheckpointError, match=r"every column 0\.\.255 once") as caught:
            logits_of(folder, TOKENS, format=None)
        assert caught.value.tensor == name


def test_more_bits_than_are_there_are_doubted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = gguf_model(tmp_path / "m.gguf", {}, "q4_1")
    slmq.load(file).close()
    slmq.load(file, format="int4").close()
    assert caplog.text == ""
    slmq.load(file, format="int8").close()
    assert "format='int8': the weights were rounded to 5.0 bits already; 8.5 bits" in caplog.text
    caplog.clear()
    slmq.quantize(file, tmp_path / "again")
    assert "rounded to 5.0 bits already; rounding them again adds to that error" in caplog.text
