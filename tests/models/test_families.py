"""Every family but Llama (test_llama.py) against transformers' logits, from every kind of file.

The names of the cases say what a configuration switches on; tests/support/golden_cases.py has them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import language_model, main_rope, rewritten, to_gguf
from gguf_cases import in_gguf
from golden import Golden, golden_names, read_golden
from llama_files import build, feed, logits_of, relative_error

import slmq
from slmq import CheckpointError
from slmq.conversion.convert import convert
from slmq.models.registry import FAMILIES

ISAS = [name for name, table in slmq.isa.items() if table is not None]
# A family has one folder of goldens, however many names it goes by.
NAMES = sorted({*FAMILIES.values(), "rope"} - {"llama"})
CASES = [(family, name) for family in NAMES for name in golden_names(family)]
cases = pytest.mark.parametrize(("family", "name"), CASES)


def answers(path: Path, golden: Golden, **options: Any) -> list[Any]:
    """Logits of both texts, by a model that is loaded for as many positions as each has."""
    return [logits_of(path, tokens, n_ctx=len(tokens), **options) for tokens in golden.tokens]


def errors(path: Path, golden: Golden, **options: Any) -> list[float]:
    got = answers(path, golden, **options)
    return [relative_error(a, b) for a, b in zip(got, golden.logits, strict=True)]


def test_every_family_has_cases() -> None:
    counts = {family: len(golden_names(family)) for family in FAMILIES.values()}
    assert min(counts.values()) >= 3, counts


@pytest.mark.parametrize("family", NAMES)
def test_each_kind_of_layer_is_there_twice(family: str) -> None:
    """In one of its cases at least, where layers differ by more than their number."""
    configs = [language_model(read_golden(family, name).folder)[0] for name in golden_names(family)]
    kinds = {kind for config in configs for kind in config.get("layer_types") or ()}
    most = {
        kind: max((config.get("layer_types") or []).count(kind) for config in configs)
        for kind in kinds
    }
    assert all(count >= 2 for count in most.values()), most
    dense = [config for config in configs if config.get("num_dense_layers")]
    assert not dense or max(config["num_dense_layers"] for config in dense) >= 2


@cases
def test_float32_agrees_with_transformers(family: str, name: str) -> None:
    golden = read_golden(family, name)
    assert max(errors(golden.folder, golden)) < 1e-5


@cases
def test_weights_as_stored_lose_nothing(family: str, name: str) -> None:
    """float16 stays as it is, bfloat16 becomes float16."""
    golden = read_golden(family, name)
    assert max(errors(golden.folder, golden, format=None)) < 1e-5


@pytest.mark.parametrize(
    ("family", "name"), [*CASES, *(("llama", n) for n in golden_names("llama"))]
)
def test_float16_agrees_with_transformers(family: str, name: str) -> None:
    """Matrices, keys and values in float16: within 1e-3 of transformers in the same float16.

    half.npz holds what transformers gives with its matrices rounded to float16 and a cache that
    rounds keys and values, in float32 arithmetic (half_goldens.py). Rounding to 11 bits is the
    format and stands on both sides; by itself it moves logits of these models, whose attention
    picks, by up to 5e-3 of the largest one. What is left between the two is a last bit of float32
    that decides now and then how a key or value rounds.
    """
    golden = read_golden(family, name)
    rounded = answers(golden.folder, golden, format="f16", kv_dtype="f16")
    for got, want, exact in zip(rounded, golden.half_logits, golden.logits, strict=True):
        assert relative_error(got, want) < 1e-3
        assert 0 < relative_error(want, exact) < 1e-2  # the reference did round


@cases
def test_prefill_equals_decode(family: str, name: str) -> None:
    """Token by token, in chunks, and at once: the same bits, on every ISA and thread count."""
    golden = read_golden(family, name)
    tokens = golden.tokens[1]
    want = logits_of(golden.folder, tokens, isa="scalar", format=None, kv_dtype="f16")
    for isa in ISAS:
        for threads, cuts in [(1, range(len(tokens))), (2, range(len(tokens))), (2, [7, 64])]:
            plan = build(golden.folder, isa=isa, threads=threads, format=None, kv_dtype="f16")
            got = feed(plan, plan.cache.sequence(), tokens, cuts=list(cuts))
            assert np.array_equal(got, want), f"{isa}, {threads} threads"


@pytest.mark.parametrize(
    ("family", "name"), [c for c in CASES if read_golden(*c).v4_config is not None]
)
def test_configs_of_transformers_4(family: str, name: str, tmp_path: Path) -> None:
    golden = read_golden(family, name)
    folder = shutil.copytree(golden.folder, tmp_path / "old")
    shutil.copy(folder / "config.v4.json", folder / "config.json")
    pairs = zip(answers(folder, golden), answers(golden.folder, golden), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


# --- other files ----------------------------------------------------------------------------


GGUF_CASES = [case for case in CASES if in_gguf(*case)]


@pytest.mark.parametrize("stored", ["f32", "f16"])
@pytest.mark.parametrize(("family", "name"), GGUF_CASES)
def test_gguf_gives_the_logits_of_safetensors(
    family: str, name: str, stored: str, tmp_path: Path
) -> None:
    golden = read_golden(family, name)
    path = to_gguf(golden.folder, tmp_path / "model.gguf", stored)
    assert max(errors(path, golden)) < (1e-5 if stored == "f32" else 1e-3)
    # Value heads that share keys stand in another order in GGUF files, and so are added up.
    reordered = (family, name) == ("qwen3_5_text", "shared_keys")
    plain = main_rope(language_model(golden.folder)[0])["rope_type"] == "default"
    if plain and not reordered:
        pairs = zip(answers(path, golden), answers(golden.folder, golden), strict=True)
        assert stored == "f16" or all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("source", ["safetensors", "gguf"])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("phi3", "fused_gqa"),
        ("phi3", "partial_longrope_tied"),
        ("qwen3", "odd_heads_tied"),
        ("gemma", "wide_heads"),
        ("gemma2", "layer_types_and_linear_rope"),
        ("gemma3_text", "two_ropes_and_linear_scaling"),
        ("gemma4_text", "table_and_shared_keys"),
        ("bitnet", "silu_tied"),
        ("gpt2", "learned_positions"),
        ("gpt_neox", "parallel"),
        ("stablelm", "parallel_head_norms_gqa"),
        ("smollm3", "no_rope_every_fourth"),
        ("seed_oss", "query_biases"),
        ("olmo2", "windows_and_yarn"),
        ("exaone4", "no_window_rope_llama3"),
        ("granite", "factors_and_rope_llama3"),
        ("granitemoehybrid", "without_positions"),
        ("hunyuan_v1_dense", "stretched_base_tied"),
        ("arcee", "biases_tied"),
        ("apertus", "xielu_rope_llama3"),
        ("ministral3", "queries_grow"),
        ("lfm2", "four_taps_biases_untied"),
        ("qwen3_5_text", "shared_keys"),
        ("qwen3_moe", "two_of_eight"),
        ("olmoe", "gqa_biases_tied"),
        ("granitemoe", "rope_llama3"),
        ("lfm2_moe", "biased_choice"),
        ("gpt_oss", "sinks_and_windows"),
    ],
)
def test_converted_folders_answer_the_same(
    family: str, name: str, source: str, tmp_path: Path
) -> None:
    golden = read_golden(family, name)
    path = golden.folder if source == "safetensors" else to_gguf(golden.folder, tmp_path / "m.gguf")
    folder = convert(path, tmp_path / "packed")
    pairs = zip(
        answers(folder, golden, format=None), answers(path, golden, format=None), strict=True
    )
    assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("family", "name"),
    [("nanochat", "norms_without_weights"), ("helium", "gqa")],
)
def test_converted_folders_without_gguf(family: str, name: str, tmp_path: Path) -> None:
    golden = read_golden(family, name)
    folder = convert(golden.folder, tmp_path / "packed")
    pairs = zip(
        answers(folder, golden, format=None),
        answers(golden.folder, golden, format=None),
        strict=True,
    )
    assert all(np.array_equal(a, b) for a, b in pairs)


# --- phi3: fused matrices -------------------------------------------------------------------


def split(weights: dict[str, Any]) -> None:
    """The fused matrices of fused_gqa as three and two: 4 and 2 heads of 12, 56 rows of gate."""
    for name in list(weights):
        if "qkv_proj" in name:
            parts, stems = np.split(weights.pop(name), [48, 72]), ("q_proj", "k_proj", "v_proj")
            weights |= {name.replace("qkv_proj", s): p for s, p in zip(stems, parts, strict=True)}
        elif "gate_up_proj" in name:
            gate, up = np.split(weights.pop(name), 2)
            weights |= {name.replace("gate_up", "gate"): gate, name.replace("gate_up", "up"): up}


@pytest.mark.parametrize("format", ["f32", "f16", "int8", "int4"])
def test_fused_matrices_are_their_parts(format: str, tmp_path: Path) -> None:
    golden = read_golden("phi3", "fused_gqa")
    plain = rewritten(
        golden.folder, tmp_path / "m", lambda c: c.update(model_type="mistral"), split
    )
    for a, b in zip(
        answers(plain, golden, format=format),
        answers(golden.folder, golden, format=format),
        strict=True,
    ):
        assert np.array_equal(a, b)


def test_a_fused_matrix_of_another_size(tmp_path: Path) -> None:
    golden = read_golden("phi3", "fused_gqa")
    name = "model.layers.1.self_attn.qkv_proj.weight"
    folder = rewritten(
        golden.folder, tmp_path / "m", lambda c: c, lambda w: w.update({name: w[name][:-1]})
    )
    with pytest.raises(CheckpointError, match=r"expected shape \[96, 48\], found \[95, 48\]"):
        build(folder)


# --- rope: what n_ctx decides ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name"),
    [("rope", "scaled_dynamic"), ("rope", "scaled_longrope"), ("phi3", "longrope")],
)
def test_frequencies_follow_n_ctx_and_not_the_text(family: str, name: str) -> None:
    """A prefix has one answer, however the text goes on; another n_ctx may give another."""
    golden = read_golden(family, name)
    tokens = golden.tokens[1]
    whole = logits_of(golden.folder, tokens, n_ctx=96)
    assert np.array_equal(logits_of(golden.folder, tokens[:20], n_ctx=96), whole[:20])
    near = logits_of(golden.folder, tokens[:20], n_ctx=24)
    assert np.array_equal(logits_of(golden.folder, tokens[:20], n_ctx=20), near)
    assert relative_error(near, whole[:20]) > 1e-2


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
YARN = {"rope_type": "yarn", "factor": 4.0}
ORIGINAL = {"original_max_position_embeddings": 24}


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "dynamic"}, "'factor': expected float"),
        ({"rope_type": "dynamic", "factor": -1.0}, "factor': expected 0.001"),
        (YARN | {"factor": float("nan")}, "factor': expected 0.001"),
        (YARN | {"rope_theta": 1.0}, "rope_theta > 1"),
        (YARN | {"beta_fast": 0.0}, "beta_fast': expected 0.001"),
        (YARN | {"truncate": "no"}, "'truncate': expected bool"),
        (YARN | {"attention_factor": -2.0}, "attention_factor': expected 0.001"),
        (YARN | {"original_max_position_embeddings": 0}, "expected 1.."),
        ({"rope_type": "longrope", "short_factor": [1.0] * 8}, "'long_factor': expected list"),
        (LONG | {"long_factor": [1.0] * 7}, "expected 8 values of rope scaling long_factor"),
        (LONG | {"long_factor": [1.0] * 7 + ["x"]}, "'long_factor': expected float"),
        (LONG | {"short_factor": [0.0] * 8}, "short_factor': expected 0.001"),
        ({"rope_type": "default", "partial_rotary_factor": 0.0}, "expected 1e-06..1"),
        ({"rope_type": "default", "partial_rotary_factor": 1.5}, "expected 1e-06..1"),
        ({"rope_type": "default", "partial_rotary_factor": 0.2}, "even number of rotated"),
    ],
    ids=str,
)
def test_scalings_that_do_not_fit(scaling: dict[str, Any], message: str, tmp_path: Path) -> None:
    golden = read_golden("rope", "scaled_yarn")

    def spoil(config: dict[str, Any]) -> None:
        config["rope_parameters"] = {"rope_theta": 100.0} | ORIGINAL | scaling

    with pytest.raises(CheckpointError, match=message):
        build(rewritten(golden.folder, tmp_path / "m", spoil))


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("mistral", "sliding_window", 0),
        ("mistral", "sliding_window", "9"),
        ("qwen2", "layer_types", ["full_attention"]),
        ("qwen2", "layer_types", ["full_attention", "chunked_attention"]),
        ("qwen3", "layer_types", [3, {}]),
        ("qwen3", "head_dim", 23),
    ],
)
def test_configurations_that_do_not_fit(family: str, key: str, value: Any, tmp_path: Path) -> None:
    name = golden_names(family)[0]
    source = read_golden(family, name).folder
    folder = rewritten(source, tmp_path / "m", lambda c: c.update({key: value}))
    with pytest.raises((CheckpointError, slmq.UnsupportedModelError)):
        build(folder)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("granite", {"residual_multiplier": 0.0}, "residual_multiplier': expected 1e-06"),
        ("granite", {"position_embedding_type": "alibi"}, "supported: rope, nope"),
        ("granitemoehybrid", {"num_local_experts": 4}, "a mixture of 4 experts"),
        ("granitemoehybrid", {"layer_types": ["mamba", "attention"]}, "Mamba 2 state.*'mamba'"),
        ("granitemoehybrid", {"layer_types": None}, "Mamba 2 state.*found none"),
        ("arcee", {"hidden_act": "silu"}, "supported: relu2"),
        ("nanochat", {"final_logit_softcapping": -1.0}, "softcapping': expected 0.001"),
        ("apertus", {"xielu": {"alpha_p": [1.0]}}, "xielu.alpha_p of 3 layers, found 1"),
        ("ministral3", {"text_config": []}, "text_config to be an object"),
        ("lfm2", {"layer_types": ["conv"]}, "expected 4 layer_types, found 1"),
        ("lfm2", {"layer_types": ["mamba"] * 4}, "'mamba' is not supported; supported: conv"),
        ("lfm2", {"conv_L_cache": 9}, "conv_L_cache': expected 2..8, found 9"),
        ("lfm2", {"conv_L_cache": 5}, r"conv.conv.weight.*expected shape \[36, 5\], found \[36, 1"),
        (
            "qwen3_5_text",
            {"layer_types": ["mamba"] * 4},
            "'mamba' is not supported; supported: lin",
        ),
        ("qwen3_5_text", {"layer_types": ["full_attention"]}, "expected 4 layer_types, found 1"),
        (
            "qwen3_5_text",
            {"linear_num_value_heads": 4},
            "multiple of linear_num_key_heads, found 4",
        ),
        ("qwen3_5_text", {"linear_key_head_dim": 6}, "linear_key_head_dim 6 is not supported"),
        ("qwen3_5_text", {"linear_conv_kernel_dim": 9}, "kernel_dim': expected 2..8, found 9"),
        (
            "qwen3_5_text",
            {"linear_conv_kernel_dim": 4},
            r"conv1d.weight.*expected shape \[132, 4\]",
        ),
    ],
)
def test_what_a_family_of_2025_refuses(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    name = "three_layers" if family == "apertus" else golden_names(family)[0]
    source = read_golden(family, name).folder
    folder = rewritten(source, tmp_path / "m", lambda c: c.update(changes))
    with pytest.raises((CheckpointError, slmq.UnsupportedModelError), match=message):
        build(folder)


@pytest.mark.parametrize("parameter", ["alpha_n", "eps"])
def test_parameters_of_xielu_that_make_no_sense(parameter: str, tmp_path: Path) -> None:
    golden = read_golden("apertus", "three_layers")
    name = f"model.layers.1.mlp.act_fn.{parameter}"
    spoil = np.full(1, 1e9, np.float32)
    folder = rewritten(
        golden.folder, tmp_path / "m", lambda c: c, lambda w: w.update({name: spoil})
    )
    with pytest.raises(CheckpointError, match=r"xIELU.*found 1000000000\.0"):
        build(folder)


def test_a_ministral_beside_a_vision_tower(tmp_path: Path) -> None:
    """As published: its configuration is a part, its tensors have a prefix, others are left out."""
    golden = read_golden("ministral3", "queries_grow")

    def wrap(config: dict[str, Any]) -> None:
        text = dict(config)
        config.clear()
        config.update(model_type="mistral3", text_config=text, vision_config={"hidden_size": 8})

    def prefix(weights: dict[str, Any]) -> None:
        for name in list(weights):
            weights[f"language_model.{name}"] = weights.pop(name)
        weights["vision_tower.patch_conv.weight"] = np.ones((8, 4), np.float32)

    folder = rewritten(golden.folder, tmp_path / "m", wrap, prefix)
    pairs = zip(answers(folder, golden), answers(golden.folder, golden), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_a_qwen_beside_a_vision_tower(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As published; the layers that guess later tokens are left out, and said to be."""
    golden = read_golden("qwen3_5_text", "one_key_for_all")

    def wrap(config: dict[str, Any]) -> None:
        text = dict(config)
        config.clear()
        config.update(model_type="qwen3_5", text_config=text, vision_config={"hidden_size": 8})

    def prefix(weights: dict[str, Any]) -> None:
        for name in list(weights):
            if name.startswith("model."):
                weights[name.replace("model.", "model.language_model.")] = weights.pop(name)
        weights["model.visual.patch_embed.weight"] = np.ones((8, 4), np.float32)
        weights["mtp.fc.weight"] = np.ones((8, 4), np.float32)

    folder = rewritten(golden.folder, tmp_path / "m", wrap, prefix)
    pairs = zip(answers(folder, golden), answers(golden.folder, golden), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert "mtp.fc.weight" in caplog.text
    assert "visual" not in caplog.text


def test_first_gemma_releases_mean_the_tanh_approximation(tmp_path: Path) -> None:
    golden = read_golden("gemma", "wide_heads")
    folder = rewritten(golden.folder, tmp_path / "m", lambda c: c.update(hidden_act="gelu"))
    assert max(errors(folder, golden)) < 1e-5
    both = {"use_bidirectional_attention": True}
    later = rewritten(golden.folder, tmp_path / "b", lambda c: c.update(both))
    with pytest.raises(slmq.UnsupportedModelError, match="writes no text"):
        slmq.load(later)
