"""What is GPT-2's own and its relatives': learned positions, names of folders, layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import rewritten, to_gguf
from golden import read_golden
from llama_files import build, feed, logits_of

import slmq
from slmq import CheckpointError
from slmq.checkpoint import open_checkpoint
from slmq.engine.opening import build_plan
from slmq.engine.options import LoadOptions


def unprefixed(weights: dict[str, Any], prefix: str) -> None:
    """As a folder has them that was saved without the head."""
    for name in [name for name in weights if name.startswith(prefix)]:
        weights[name.removeprefix(prefix)] = weights.pop(name)


@pytest.mark.parametrize(
    ("family", "name", "prefix", "attention"),
    [
        ("gpt2", "learned_positions", "transformer.", "h.0.attn"),
        ("gpt_neox", "parallel", "gpt_neox.", "layers.0.attention"),
        ("phi", "half_rotary", "model.", "layers.0.self_attn"),
        ("stablelm", "qkv_bias", "model.", "layers.0.self_attn"),
    ],
)
def test_names_without_prefix_and_buffers_of_masks(
    family: str, name: str, prefix: str, attention: str, tmp_path: Path
) -> None:
    """Published folders have both kinds of names, and old ones hold the masks of attention."""
    golden = read_golden(family, name)

    def old(weights: dict[str, Any]) -> None:
        unprefixed(weights, prefix)
        weights[f"{attention}.bias"] = np.tril(np.ones((1, 1, 80, 80), np.float32))
        weights[f"{attention}.masked_bias"] = np.array(-1e4, np.float32)
        if "embed_out.weight" not in weights and family == "gpt_neox":
            weights["embed_out.weight"] = weights.pop("lm_head.weight")

    folder = rewritten(golden.folder, tmp_path / "m", lambda c: c, old)
    tokens = golden.tokens[0]
    assert np.array_equal(logits_of(folder, tokens), logits_of(golden.folder, tokens))


# --- learned positions ----------------------------------------------------------------------


def test_no_more_positions_than_were_learned() -> None:
    golden = read_golden("gpt2", "learned_positions")
    assert build(golden.folder, n_ctx=80).steps[0].shape == "50x36 + 80x36"
    with pytest.raises(ValueError, match="n_ctx: expected at most 80, the positions that this"):
        build(golden.folder, n_ctx=81)
    plan = build(golden.folder)
    sequence = plan.cache.sequence()
    feed(plan, sequence, golden.tokens[1])
    assert sequence.length == 80
    with pytest.raises(ValueError, match=r"at most 80 positions, .* got 80 and 1 more"):
        feed(plan, sequence, [1])
    assert sequence.length == 80


def test_positions_stay_floats_in_a_quantized_model(tmp_path: Path) -> None:
    """They are added to the embedding, where no norm takes an error back."""
    golden = read_golden("gpt2", "learned_positions")
    with open_checkpoint(golden.folder) as checkpoint:
        plan, info = build_plan(checkpoint, LoadOptions(n_threads=1, format="int4", memory="small"))
    assert info.formats["f16"] == 96 * 64 * 2  # 80 x 36, in whole tiles
    assert set(info.formats) == {"f16", "q4g32a"}
    assert np.isfinite(feed(plan, plan.cache.sequence(), golden.tokens[0])).all()
    made = slmq.quantize(golden.folder, tmp_path / "q")
    with open_checkpoint(made.path) as checkpoint:
        formats = {name: info.dtype for name, info in checkpoint.tensors.items()}
    assert formats["transformer.wpe.weight"] == "f32"
    assert formats["transformer.h.0.attn.c_attn.weight[36:72]"] == "q4g32a"


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("n_head", 5, CheckpointError, "n_embd to be a multiple of n_head, found 36 and 5"),
        ("n_positions", 79, CheckpointError, r"expected shape \[79, 36\], found \[80, 36\]"),
        ("layer_norm_epsilon", -1.0, CheckpointError, "layer_norm_epsilon': expected 0..1"),
        ("activation_function", "mish", slmq.UnsupportedModelError, "'mish' is not supported"),
        ("add_cross_attention", True, slmq.UnsupportedModelError, "cross attention"),
    ],
)
def test_configurations_that_do_not_fit(
    key: str, value: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    source = read_golden("gpt2", "learned_positions").folder
    with pytest.raises(error, match=message):
        build(rewritten(source, tmp_path / "m", lambda c: c.update({key: value})))


# --- layouts --------------------------------------------------------------------------------


def test_matrices_of_a_layer_are_transposed_in_folders_only(tmp_path: Path) -> None:
    golden = read_golden("gpt2", "learned_positions")

    def turn(weights: dict[str, Any]) -> None:
        name = "transformer.h.0.attn.c_attn.weight"
        weights[name] = np.ascontiguousarray(weights[name].T)

    with pytest.raises(CheckpointError, match=r"expected shape \[36, 108\], found \[108, 36\]"):
        build(rewritten(golden.folder, tmp_path / "m", lambda c: c, turn))
    path = to_gguf(golden.folder, tmp_path / "m.gguf")
    tokens = golden.tokens[0]
    assert np.array_equal(logits_of(path, tokens), logits_of(golden.folder, tokens))


def test_phi_with_one_matrix_for_queries_keys_and_values(tmp_path: Path) -> None:
    """Early GGUF files of Phi-2 have them so."""
    golden = read_golden("phi", "half_rotary")

    def fuse(weights: dict[str, Any]) -> None:
        for kind in ("weight", "bias"):
            for layer in range(2):
                stem = f"model.layers.{layer}.self_attn"
                parts = [weights.pop(f"{stem}.{p}_proj.{kind}") for p in "qkv"]
                weights[f"{stem}.qkv_proj.{kind}"] = np.concatenate(parts)

    folder = rewritten(golden.folder, tmp_path / "m", lambda c: c, fuse)
    path = to_gguf(folder, tmp_path / "m.gguf")
    tokens = golden.tokens[0]
    assert np.array_equal(logits_of(path, tokens), logits_of(golden.folder, tokens))


def test_stablelm_whose_norms_have_no_bias(tmp_path: Path) -> None:
    golden = read_golden("stablelm", "qkv_bias")

    def biases(weights: dict[str, Any], *, zero: bool) -> None:
        for name in [name for name in weights if "norm" in name and name.endswith(".bias")]:
            weights[name] = 0 * weights[name]
            if not zero:
                del weights[name]

    zeros = rewritten(golden.folder, tmp_path / "0", lambda c: c, lambda w: biases(w, zero=True))
    none = rewritten(golden.folder, tmp_path / "n", lambda c: c, lambda w: biases(w, zero=False))
    tokens = golden.tokens[0]
    assert np.array_equal(logits_of(none, tokens), logits_of(zeros, tokens))
    with pytest.raises(slmq.UnsupportedModelError, match="hidden_act 'gelu' is not supported"):
        build(rewritten(zeros, tmp_path / "g", lambda c: c.update(hidden_act="gelu")))
