"""Mixtures of experts: files that say one thing and hold another, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import rewritten, to_gguf
from gguf_writer import write_gguf
from golden import read_golden
from llama_files import build, feed, logits_of
from mixture_files import mixture_folder
from numpy_weights import read_safetensors

import slmq
from slmq import CheckpointError, UnsupportedModelError
from slmq.checkpoint import open_checkpoint
from slmq.conversion.convert import convert
from slmq.conversion.dequantize import dequantize

FAMILIES = {
    "qwen3_moe": "two_of_eight",
    "olmoe": "two_of_eight",
    "granitemoe": "factors",
    "lfm2_moe": "biased_choice",
    "gpt_oss": "sinks_and_windows",
}
families = pytest.mark.parametrize("family", FAMILIES)


def golden_of(family: str) -> Any:
    return read_golden(family, FAMILIES[family])


def typical_error(got: Any, want: Any) -> float:
    """Of a row in the middle: rounding changes the choice of an expert now and then."""
    return float(np.median(np.abs(got - want).max(axis=1) / np.abs(want).max(axis=1)))


@families
@pytest.mark.parametrize("format", ["int4", "int8"])
def test_a_text_among_others_has_the_bits_that_it_has_alone(family: str, format: str) -> None:
    golden = golden_of(family)
    texts = [list(golden.tokens[0]), list(golden.tokens[1]), list(golden.tokens[1])[7:40]]
    plan = build(golden.folder, format=format, threads=2)
    alone = [feed(plan, plan.cache.sequence(), text) for text in texts]
    sequences = [plan.cache.sequence() for _ in texts]
    for start in range(0, 30, 10):
        parts = [text[start : start + 10] for text in texts]
        rows = np.arange(30, dtype=np.int32)
        plan.run(np.concatenate(parts).astype(np.int32), [(s, 10) for s in sequences], rows)
        for i, logits in enumerate(np.split(plan.logits(), 3)):
            assert np.array_equal(logits, alone[i][start : start + 10])
    for step in range(30, 33):
        ids = np.array([text[step] for text in texts], np.int32)
        plan.run(ids, [(s, 1) for s in sequences], np.arange(3, dtype=np.int32))
        assert np.array_equal(plan.logits(), np.stack([one[step] for one in alone]))


@families
def test_integers_answer_like_floats(family: str) -> None:
    golden = golden_of(family)
    got = logits_of(golden.folder, golden.tokens[0], format="int8")
    assert typical_error(got, golden.logits[0]) < 0.1


# --- what becomes of them -----------------------------------------------------------------------


@families
def test_quantized_and_back(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A quantized folder is its dequantized one, which transformers would read."""
    golden = golden_of(family)
    packed = slmq.quantize(golden.folder, tmp_path / "packed", format="int8", method="rtn")
    plain = dequantize(packed, tmp_path / "plain", dtype="f32")
    assert "no use for" not in caplog.text
    want = read_safetensors(golden.folder / "model.safetensors")
    got = read_safetensors(plain / "model.safetensors")
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in want.items()}
    for name, values in got.items():
        assert np.abs(values - want[name].astype(np.float32)).max() < 0.03, name
    tokens = golden.tokens[0]
    packed_answer = logits_of(packed.path, tokens, format=None, activations="exact")
    assert typical_error(packed_answer, logits_of(plain, tokens)) < 1e-3


@families
def test_packed_from_gguf_as_from_the_folder(family: str, tmp_path: Path) -> None:
    golden = golden_of(family)
    files = [golden.folder, to_gguf(golden.folder, tmp_path / "m.gguf", "f16")]
    folders = [convert(file, tmp_path / f"packed{i}") for i, file in enumerate(files)]
    names = []
    for folder in folders:
        with open_checkpoint(folder) as checkpoint:
            names.append({n for n in checkpoint.tensors if "expert" in n or "sparse" in n})
    assert names[0] == names[1]
    assert names[0]


def test_calibration_takes_layers_of_experts_apart(tmp_path: Path) -> None:
    """Gates and ups are rounded for their inputs, downs for themselves, routers not at all."""
    source = mixture_folder(tmp_path / "tiny")
    text = tmp_path / "text.txt"
    rng = np.random.default_rng(0)
    text.write_text("".join(map(chr, rng.integers(0x61, 0x7A, 4000))), "utf-8")
    folder = slmq.quantize(
        source, tmp_path / "packed", format="int8", method="feedback", calibrate=text
    )
    methods = {tensor.name: tensor.method for tensor in folder.tensors}
    assert methods["model.layers.1.mlp.experts.3.up_proj.weight"] == "feedback"
    assert methods["model.layers.1.mlp.experts.3.down_proj.weight"] == "rtn"
    assert not any("mlp.gate.weight" in name for name in methods)
    mixed = slmq.quantize(source, tmp_path / "mixed", bits=6.0, calibrate=text)
    assert len({tensor.format for tensor in mixed.tensors}) > 1
    tokens = list(range(97, 122))
    got, want = logits_of(folder.path, tokens, format=None), logits_of(source, tokens)
    assert typical_error(got, want) < 0.1
    assert np.isfinite(logits_of(mixed.path, tokens, format=None)).all()


def test_adapters_and_training_do_not_reach_experts() -> None:
    from slmq.engine.training.tape import Tape

    golden = golden_of("qwen3_moe")
    with open_checkpoint(golden.folder) as checkpoint:
        from slmq.models.loading import load_weights

        loaded = load_weights(checkpoint, threads=1)
    with pytest.raises(UnsupportedModelError, match="mixtures of experts"):
        loaded.family.forward(Tape(64), loaded.weights, loaded.config)


# --- files that say one thing and hold another --------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen3_moe", {"num_experts_per_tok": 9}, r"1\.\.8, as there are 8 .*num_local_experts"),
        ("qwen3_moe", {"num_local_experts": 0}, r"num_local_experts': expected 1\.\.4096"),
        ("qwen3_moe", {"num_local_experts": 9}, r"mlp\.gate.*expected shape \[9, 32\]"),
        ("qwen3_moe", {"moe_intermediate_size": 25}, r"experts\.0\.gate.*expected shape \[25, 32"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step': expected 1"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, r"layers\.0\.mlp\.gate_proj.*is missing"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv 8.0 is not supported"),
        ("olmoe", {"num_experts_per_tok": 0}, "num_experts_per_tok': expected 1"),
        ("granitemoe", {"num_local_experts": 10}, r"router.*expected shape \[10, 32\]"),
        ("granitemoe", {"num_experts_per_tok": 70}, r"1\.\.8, as there are 8"),
        ("lfm2_moe", {"num_experts": 20}, r"gate.*expected shape \[20, 32\]"),
        ("lfm2_moe", {"num_dense_layers": 5}, r"layers\.2\.feed_forward\.w1.*is missing"),
        ("lfm2_moe", {"routed_scaling_factor": 1e9}, "routed_scaling_factor': expected"),
        ("gpt_oss", {"num_local_experts": 9}, r"router.*expected shape \[9, 32\]"),
        ("gpt_oss", {"intermediate_size": 30}, r"gate_up_proj.*expected shape \[32, 60\]"),
        ("gpt_oss", {"swiglu_limit": -1.0}, "swiglu_limit': expected 0.001"),
        ("gpt_oss", {"layer_types": ["mamba"] * 4}, "'mamba' is not supported"),
    ],
)  # fmt: skip
def test_configurations_that_do_not_fit_their_experts(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = golden_of(family).folder
    folder = rewritten(source, tmp_path / "m", lambda c: c.update(changes))
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message) as caught:
        build(folder)
    assert str(folder) in str(caught.value)


def without(*parts: str) -> Callable[[dict[str, Any]], Any]:
    def drop(weights: dict[str, Any]) -> None:
        for name in [n for n in weights if all(part in n for part in parts)]:
            del weights[name]

    return drop


@pytest.mark.parametrize(
    ("family", "gone", "message"),
    [
        ("qwen3_moe", ("experts.3.", "layers.1"), r"layers\.1\.mlp\.experts\.3\.gate_proj"),
        ("qwen3_moe", ("mlp.gate.",), r"layers\.0\.mlp\.gate\.weight' is missing"),
        ("granitemoe", ("output_linear",), r"output_linear\.weight\[0\]' is missing"),
        ("lfm2_moe", ("expert_bias",), r"feed_forward\.expert_bias' is missing"),
        ("gpt_oss", ("sinks", "layers.2"), r"layers\.2\.self_attn\.sinks' is missing"),
        ("gpt_oss", ("down_proj_bias",), r"down_proj_bias\[0\]' is missing"),
    ],
)
def test_missing_experts(family: str, gone: tuple[str, ...], message: str, tmp_path: Path) -> None:
    source = golden_of(family).folder
    folder = rewritten(source, tmp_path / "m", lambda c: c, without(*gone))
    with pytest.raises(CheckpointError, match=message):
        build(folder)


def gguf_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any) -> Path:
    """The GGUF file of a mixture, its keys and tensors changed on their way."""
    import family_files

    def write(path: Path, keys: dict[str, Any], tensors: dict[str, Any]) -> Path:
        change(keys, tensors)
        return write_gguf(path, keys, tensors)

    monkeypatch.setattr(family_files, "write_gguf", write)
    return to_gguf(golden_of("qwen3_moe").folder, tmp_path / "m.gguf")


def more_said(keys: dict[str, Any], _tensors: dict[str, Any]) -> None:
    keys["qwen3moe.expert_count"] = 9


def fewer_said(keys: dict[str, Any], _tensors: dict[str, Any]) -> None:
    keys["qwen3moe.expert_count"] = 7


def more_used(keys: dict[str, Any], _tensors: dict[str, Any]) -> None:
    keys["qwen3moe.expert_used_count"] = 9


def apart(_keys: dict[str, Any], tensors: dict[str, Any]) -> None:
    for name in [n for n in tensors if "_exps" in n]:
        for i, matrix in enumerate(tensors.pop(name)):
            tensors[name.replace("_exps", f".{i}")] = matrix


def one_stack_missing(_keys: dict[str, Any], tensors: dict[str, Any]) -> None:
    del tensors["blk.1.ffn_up_exps.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (more_said, r"9 experts in 'blk\.0\.ffn_gate_exps\.weight' \(expert_count\), found 8"),
        (fewer_said, r"7 experts in 'blk\.0\.ffn_gate_exps\.weight' \(expert_count\), found 8"),
        (more_used, r"1\.\.8, as there are 8 experts"),
        (apart, r"block 0 as a stack 'blk\.0\.ffn_gate_exps\.weight', found none.*ffn_down\.0"),
        (one_stack_missing, r"block 1 as a stack 'blk\.1\.ffn_up_exps\.weight', found none"),
    ],
)
def test_gguf_files_whose_experts_do_not_fit(
    change: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf_with(tmp_path, monkeypatch, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        build(path)
    assert str(path) in str(caught.value)


def test_a_dense_family_refuses_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(keys: dict[str, Any], _tensors: dict[str, Any]) -> None:
        for key in list(keys):
            keys[key.replace("qwen3moe", "qwen3")] = keys.pop(key)
        keys["general.architecture"] = "qwen3"

    with pytest.raises(UnsupportedModelError, match="a mixture of 8 experts"):
        build(gguf_with(tmp_path, monkeypatch, rename))
