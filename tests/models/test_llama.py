"""The Llama family through the engine, against logits of transformers, from every kind of file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import golden_names, read_golden
from llama_files import (
    build,
    changed,
    copied,
    dequantized,
    feed,
    logits_of,
    relative_error,
    to_gguf,
)
from numpy_llama import NumpyLlama
from numpy_weights import load_hf_folder

from slmq import CheckpointError, QuantizedMatrix, UnsupportedModelError
from slmq.checkpoint import open_checkpoint
from slmq.engine.opening import build_plan
from slmq.engine.options import LoadOptions
from slmq.formats import GROUP, quantize_activations

CASES = golden_names("llama")
cases = pytest.mark.parametrize("name", CASES)
BLOCKS = [name for name in CASES if name in {"gqa_untied", "mha_tied", "sharded"}]


# --- safetensors ----------------------------------------------------------------------------


@cases
def test_float32_agrees_with_transformers(name: str) -> None:
    """Largest difference over largest logit: a few hundred roundings of float32."""
    golden = read_golden("llama", name)
    for tokens, want in zip(golden.tokens, golden.logits, strict=True):
        assert relative_error(logits_of(golden.folder, tokens), want) < 1e-5


@cases
def test_float32_agrees_with_float64(name: str) -> None:
    golden = read_golden("llama", name)
    model = NumpyLlama(*load_hf_folder(golden.folder), np.float64)
    for tokens in golden.tokens:
        assert relative_error(logits_of(golden.folder, tokens), model.logits(tokens)) < 5e-6


@cases
def test_float16_cache_rounds_keys_and_values_only(name: str) -> None:
    golden = read_golden("llama", name)
    model = NumpyLlama(*load_hf_folder(golden.folder), np.float64, cache_f16=True)
    for tokens in golden.tokens:
        got = logits_of(golden.folder, tokens, kv_dtype="f16")
        # A last bit of float32 may decide how a key or value rounds to float16.
        assert relative_error(got, model.logits(tokens)) < 2e-3


@cases
def test_weights_stay_as_stored_by_default(name: str) -> None:
    """Float32 stays float32, float16 float16; bfloat16 becomes float16, which holds these."""
    golden = read_golden("llama", name)
    stored = json.loads((golden.folder / "config.json").read_text("utf-8"))["dtype"]
    plan = build(golden.folder, format=None)
    kinds = {step.format for step in plan.steps if step.op.startswith(("linear", "swiglu"))}
    assert kinds == {"f32" if stored == "float32" else "f16"}
    for tokens, want in zip(golden.tokens, golden.logits, strict=True):
        got = logits_of(golden.folder, tokens, format=None)
        assert relative_error(got, want) < (1e-5 if stored != "bfloat16" else 1e-3)


@cases
@pytest.mark.parametrize("format", ["f16", "int8", "int4", "q4g32s"])
def test_quantized_on_load_is_the_dequantized_model(name: str, format: str) -> None:
    """The engine is float64 over the same quantized weights and rounded activations."""
    golden = read_golden("llama", name)
    config, weights = load_hf_folder(golden.folder)
    for key, w in weights.items():
        if w.ndim == 2:
            weights[key] = quantized_values(w, format)
    model = NumpyLlama if format == "f16" else SixteenBits
    want = model(config, weights, np.float64).logits(golden.tokens[0])
    got = logits_of(golden.folder, golden.tokens[0], format=format, activations="exact")
    # A last bit of float32 may decide how an activation rounds.
    assert relative_error(got, want) < (5e-6 if format == "f16" else 4e-4)
    # Eight bits where nothing stands out: a few hundredths of the largest logit.
    got = logits_of(golden.folder, golden.tokens[0], format=format)
    assert relative_error(got, want) < (5e-6 if format == "f16" else 0.1)


def quantized_values(w: Any, format: str) -> Any:
    return QuantizedMatrix.quantize(w, format).dequantize()


class SixteenBits(NumpyLlama):
    """With the inputs of its linear layers, but for the head, rounded as a16g32 rounds them."""

    def _linear(self, x: Any, name: str) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % GROUP))).astype(np.float32)
        q, scale = quantize_activations(padded, "a16g32")
        rounded = q.reshape(*scale.shape, GROUP) * scale[..., None].astype(np.float64)
        return super()._linear(
            rounded.reshape(padded.shape)[:, : x.shape[-1]].reshape(x.shape), name
        )


@pytest.mark.parametrize("name", [n for n in CASES if read_golden("llama", n).v4_config])
def test_configs_of_transformers_4(name: str, tmp_path: Path) -> None:
    golden = read_golden("llama", name)
    folder = copied(name, tmp_path / name, "config.v4.json")
    for tokens, want in zip(golden.tokens, golden.logits, strict=True):
        got = logits_of(folder, tokens)
        assert relative_error(got, want) < 1e-5
        assert np.array_equal(got, logits_of(golden.folder, tokens))


def test_defaults_of_an_old_config(tmp_path: Path) -> None:
    """Llama 2's configs name neither head_dim nor KV heads nor rope."""

    def old(config: dict[str, Any]) -> None:
        for key in ("head_dim", "num_key_value_heads", "rope_parameters", "attention_bias"):
            del config[key]

    golden = read_golden("llama", "mha_tied")
    folder = changed("mha_tied", tmp_path / "old", config=old)
    assert relative_error(logits_of(folder, golden.tokens[0]), golden.logits[0]) < 1e-5


# --- GGUF -----------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize("stored", ["f32", "f16"])
def test_gguf_gives_the_logits_of_safetensors(name: str, stored: str, tmp_path: Path) -> None:
    """Bit by bit, permuted q and k rows and all; the rope divisors of llama3 round once more."""
    golden = read_golden("llama", name)
    path = to_gguf(name, tmp_path / "model.gguf", stored)
    for tokens, want in zip(golden.tokens, golden.logits, strict=True):
        got = logits_of(path, tokens, format="f32" if stored == "f32" else "f16")
        if name == "rope_llama3":
            assert relative_error(got, want) < (1e-5 if stored == "f32" else 1e-2)
        else:
            folder = logits_of(golden.folder, tokens, format=stored)
            assert np.array_equal(got, folder)


@pytest.mark.parametrize("stored", ["q4_0", "q4_1", "q8_0"])
@pytest.mark.parametrize("name", BLOCKS)
def test_quantized_gguf_is_its_dequantized_model(name: str, stored: str, tmp_path: Path) -> None:
    golden = read_golden("llama", name)
    path = to_gguf(name, tmp_path / "model.gguf", stored)
    config, _ = load_hf_folder(golden.folder)
    model = NumpyLlama(config, dequantized(name, stored), np.float64)
    for tokens in golden.tokens:
        # By default the stored blocks run; as float32 their values do.
        for wanted, limit in [(None, 5e-4), ("f32", 5e-6)]:
            got = logits_of(path, tokens, format=wanted, activations="exact")
            assert relative_error(got, model.logits(tokens)) < limit


def test_gguf_without_optional_keys(tmp_path: Path) -> None:
    """No vocab_size, key_length or KV heads: sizes come from tensors and heads."""
    path = to_gguf("mha_tied", tmp_path / "full.gguf")
    want = logits_of(path, [1, 2, 3])
    data = path.read_bytes()
    for key in (b"llama.vocab_size", b"llama.attention.key_length"):
        data = data.replace(key, key[:-3] + b"xxx")  # as good as absent
    (tmp_path / "bare.gguf").write_bytes(data)
    assert np.array_equal(logits_of(tmp_path / "bare.gguf", [1, 2, 3]), want)


# --- what is refused ------------------------------------------------------------------------


def refuse(path: Path, error: type[Exception], message: str) -> Exception:
    with open_checkpoint(path) as checkpoint, pytest.raises(error, match=message) as caught:
        build_plan(checkpoint, LoadOptions(n_threads=1, memory="small"))
    assert str(path) in str(caught.value) or error is UnsupportedModelError
    return caught.value


def test_rope_scalings_that_we_lack(tmp_path: Path) -> None:
    def scale(config: dict[str, Any]) -> None:
        config["rope_parameters"] = {"rope_type": "mrope", "factor": 2.0, "rope_theta": 1e4}

    folder = changed("gqa_untied", tmp_path / "m", config=scale)
    message = "rope scaling 'mrope' is not supported; supported: default, linear, dynamic"
    refuse(folder, UnsupportedModelError, message)


def test_an_activation_that_we_lack(tmp_path: Path) -> None:
    folder = changed("gqa_untied", tmp_path / "m", config=lambda c: c.update(hidden_act="relu"))
    refuse(folder, UnsupportedModelError, "hidden_act 'relu' is not supported; supported: silu")


@pytest.mark.parametrize(
    ("architecture", "nearest"),
    [
        ("lama", "the nearest is llama"),
        ("Llama4_text", "the nearest is llama"),
        ("rwkv7", "supported: "),
        ("x" * 200, "supported: "),
    ],
)
def test_architectures_that_we_lack(architecture: str, nearest: str, tmp_path: Path) -> None:
    folder = changed(
        "gqa_untied", tmp_path / "m", config=lambda c: c.update(model_type=architecture)
    )
    error = refuse(folder, UnsupportedModelError, f"architecture '{architecture[:79]}")
    assert nearest in str(error)
    assert ("the nearest" in str(error)) == nearest.startswith("the nearest")
    assert "llama" in str(error).partition("supported: ")[2]
    assert "docs/adding-a-model.md shows how to add one" in str(error)
    assert len(str(error)) < 1000
    assert str(folder) in str(error)


Q = "model.layers.1.self_attn.q_proj.weight"


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda w: w.pop(name)


def replaced(name: str, value: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda w: w.update({name: value(w[name])})


def spoiled(value: float) -> Callable[[Any], Any]:
    def spoil(w: Any) -> Any:
        w = w.copy()
        w.reshape(-1)[-3] = value
        return w

    return spoil


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", Q, "model.layers.0.input_layernorm.weight"]
)
def test_missing_tensors(name: str, tmp_path: Path) -> None:
    folder = changed("gqa_untied", tmp_path / "m", weights=without(name))
    refuse(folder, CheckpointError, f"tensor '{name}' is missing")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("format", [None, "int4", "int8", "f16"])
@pytest.mark.parametrize("name", [Q, "model.norm.weight", "lm_head.weight"])
def test_weights_that_are_not_finite(
    name: str, format: str | None, value: float, tmp_path: Path
) -> None:
    folder = changed("gqa_untied", tmp_path / "m", weights=replaced(name, spoiled(value)))
    with open_checkpoint(folder) as checkpoint, pytest.raises(CheckpointError) as caught:
        build_plan(checkpoint, LoadOptions(n_threads=2, format=format, memory="small"))
    assert caught.value.tensor == name
    assert "expected finite weights, found NaN or infinity" in str(caught.value)
    assert str(folder) in str(caught.value)


def test_weights_beyond_float16(tmp_path: Path) -> None:
    folder = changed("gqa_untied", tmp_path / "m", weights=replaced(Q, spoiled(1e9)))
    with open_checkpoint(folder) as checkpoint, pytest.raises(CheckpointError) as caught:
        build_plan(checkpoint, LoadOptions(n_threads=1, format="f16", memory="small"))
    assert caught.value.tensor == Q
    assert "too large for float16" in str(caught.value)
    logits_of(folder, [1])  # float32 holds it


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (Q, lambda w: w[:-1]),
        (Q, lambda w: np.ascontiguousarray(w[:, :-1])),
        (Q, lambda w: w[None]),
        (Q, lambda w: w.reshape(-1)),
        ("model.norm.weight", lambda w: w[:-1]),
        ("model.norm.weight", lambda w: w[None]),
        ("lm_head.weight", lambda w: np.concatenate([w, w])),
    ],
)
def test_tensors_of_another_shape(name: str, shape: Callable[[Any], Any], tmp_path: Path) -> None:
    folder = changed("gqa_untied", tmp_path / "m", weights=replaced(name, shape))
    error = refuse(folder, CheckpointError, r"expected shape \[.*\], found \[.*\]")
    assert isinstance(error, CheckpointError)
    assert error.tensor == name


@pytest.mark.parametrize(
    ("name", "kind"), [(Q, np.int32), (Q, np.uint8), ("model.norm.weight", np.int64)]
)
def test_tensors_of_another_type(name: str, kind: Any, tmp_path: Path) -> None:
    folder = changed("gqa_untied", tmp_path / "m", weights=replaced(name, lambda w: w.astype(kind)))
    with pytest.raises(CheckpointError) as caught:
        logits_of(folder, [1])
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", None),
        ("hidden_size", "64"),
        ("hidden_size", 64.5),
        ("hidden_size", 65),
        ("hidden_size", 0),
        ("hidden_size", -64),
        ("num_hidden_layers", True),
        ("num_hidden_layers", 3),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", 0),
        ("num_attention_heads", 7),
        ("num_attention_heads", 2**40),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 0),
        ("num_key_value_heads", -2),
        ("head_dim", 7),
        ("head_dim", 0),
        ("head_dim", 2**31),
        ("vocab_size", 0),
        ("vocab_size", 10**12),
        ("intermediate_size", 0),
        ("rms_norm_eps", "small"),
        ("rms_norm_eps", -1.0),
        ("rms_norm_eps", float("nan")),
        ("max_position_embeddings", 0),
        ("max_position_embeddings", -1),
        ("rope_parameters", 3),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 0.0}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": "big"}),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 1e4}),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 1e4, "factor": float("nan")}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": float("inf")}),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
    ],
    ids=str,
)
def test_configurations_that_do_not_fit(key: str, value: Any, tmp_path: Path) -> None:
    """Wrong numbers end in an error about the file, before memory is taken for them."""
    folder = changed("gqa_untied", tmp_path / "m", config=lambda c: c.update({key: value}))
    with pytest.raises((CheckpointError, UnsupportedModelError)) as caught:
        logits_of(folder, [1])
    assert len(str(caught.value)) > 20


def test_gguf_errors_name_the_tensor_of_the_file(tmp_path: Path) -> None:
    path = to_gguf("gqa_untied", tmp_path / "m.gguf", metadata={"llama.block_count": 9})
    refuse(path, CheckpointError, r"tensor 'blk\.2\.attn_norm\.weight' is missing")


def test_unknown_names_of_options(tmp_path: Path) -> None:
    golden = read_golden("llama", "gqa_untied")
    with pytest.raises(
        ValueError, match=r"format: expected one of 'int4', 'int8', .*; got 'q4_k_m'"
    ):
        logits_of(golden.folder, [1], format="q4_k_m")
    with pytest.raises(
        ValueError, match="kv_dtype: expected one of 'f16', 'f32', 'int8', 'int4'; got 'int2'"
    ):
        logits_of(golden.folder, [1], kv_dtype="int2")
    with pytest.raises(ValueError, match="unknown ISA 'sse'"):
        logits_of(golden.folder, [1], isa="sse")
    with pytest.raises(ValueError, match="activations: expected one of 'mixed', 'exact'; got 'a4'"):
        logits_of(golden.folder, [1], format="int8", activations="a4")


def test_sequences_longer_than_a_chunk() -> None:
    """More tokens than one native run takes, and positions beyond what the model was made for."""
    golden = read_golden("llama", "gqa_untied")
    config, weights = load_hf_folder(golden.folder)
    tokens = np.random.default_rng(0).integers(0, 96, 700).tolist()
    plan = build(golden.folder)
    assert plan.native.max_rows < 700
    want = NumpyLlama(config, weights, np.float64).logits(tokens)
    assert relative_error(feed(plan, plan.cache.sequence(), tokens), want) < 2e-5
