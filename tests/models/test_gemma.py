"""What is Gemma's own: caps, files beside a vision tower, what configurations leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import rewritten, to_gguf
from golden import read_golden
from llama_files import build, feed, logits_of, relative_error

import slmq
from slmq import CheckpointError, UnsupportedModelError
from slmq.checkpoint import open_checkpoint
from slmq.cli.models import describe
from slmq.conversion.convert import convert
from slmq.models import gemma2, gemma3_text

ISAS = [name for name, table in slmq.isa.items() if table is not None]
CAPPED = read_golden("gemma2", "caps_and_alternating_windows")
VISION = read_golden("gemma3_text", "beside_a_vision_tower")


@pytest.mark.parametrize(
    ("format", "kv_dtype", "within"),
    [("f32", "int8", 0.1), ("int8", "f16", 0.1), ("int4", "int8", 1.0)],
)
def test_caps_and_norms_have_one_answer(format: str, kv_dtype: str, within: float) -> None:
    """Prefill, chunks and single tokens, on every ISA, with other caches and integer weights."""
    tokens = CAPPED.tokens[1]
    options: dict[str, Any] = {"format": format, "kv_dtype": kv_dtype}
    want = logits_of(CAPPED.folder, tokens, isa="scalar", **options)
    assert relative_error(want, CAPPED.logits[1]) < within
    assert np.abs(want).max() < 6  # the cap of the logits, the rows of run_outputs() too
    for isa in ISAS:
        for threads, cuts in [(1, range(len(tokens))), (3, [7, 64])]:
            plan = build(CAPPED.folder, isa=isa, threads=threads, **options)
            got = feed(plan, plan.cache.sequence(), tokens, cuts=list(cuts))
            assert np.array_equal(got, want), f"{isa}, {threads} threads"


def test_steps_of_a_layer() -> None:
    """Norms behind attention and MLP take the sum along; the cap rides on the head."""
    ops = [step.op for step in build(CAPPED.folder).steps]
    assert ops.count("rmsnorm+add") == 4
    assert ops[-1] == "linear+softcap"
    assert len(ops) == 2 + 2 * 9 + 3


# --- beside a vision tower ------------------------------------------------------------------


def test_a_vision_tower_is_left_out(tmp_path: Path) -> None:
    """Both ways of naming the tensors, a packed folder and a GGUF file hold the same model."""
    want = logits_of(VISION.folder, VISION.tokens[0], format=None)

    def rename(weights: dict[str, Any]) -> None:
        for name in [n for n in weights if n.startswith("language_model.")]:
            newer = name.replace("language_model.model.", "model.language_model.")
            weights[newer] = weights.pop(name)

    newer = rewritten(VISION.folder, tmp_path / "newer", lambda c: c, rename)
    packed = convert(VISION.folder, tmp_path / "packed")
    for path in (newer, packed, to_gguf(VISION.folder, tmp_path / "m.gguf")):
        assert np.array_equal(logits_of(path, VISION.tokens[0], format=None), want), path
    with open_checkpoint(packed) as checkpoint:
        assert not [name for name in checkpoint.tensors if "vision" in name]
        assert describe(checkpoint)["context"] == 128


def test_a_vision_tower_alone(tmp_path: Path) -> None:
    def spoil(weights: dict[str, Any]) -> None:
        for name in [n for n in weights if n.startswith("language_model.")]:
            del weights[name]

    folder = rewritten(VISION.folder, tmp_path / "m", lambda c: c, spoil)
    with pytest.raises(CheckpointError, match=r"language model's tensors, found none of model\."):
        build(folder)


# --- what configurations leave out -----------------------------------------------------------


def test_what_gemma_3_leaves_out() -> None:
    """The text part of a configuration as the larger models are published with."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    cfg = gemma3_text.Config.from_dict({"model_type": "gemma3", "text_config": text})
    assert (cfg.n_heads, cfg.n_kv_heads, cfg.head_dim) == (8, 4, 256)
    assert (cfg.vocab_size, cfg.max_positions, cfg.tied) == (262208, 131072, True)
    assert [i for i, slides in enumerate(cfg.sliding) if not slides] == [5, 11, 17, 23, 29]
    assert (cfg.window, cfg.scale, cfg.logit_softcap) == (1024, 256**-0.5, 0.0)
    assert (cfg.rope.base, cfg.rope.kind, cfg.rope.scaling["factor"]) == (1e6, "linear", 8.0)
    assert (cfg.local_rope.base, cfg.local_rope.kind) == (1e4, "default")


def test_what_gemma_2_leaves_out() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 32}
    heads = {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}
    cfg = gemma2.Config.from_dict(sizes | heads)
    assert (cfg.attention_softcap, cfg.logit_softcap) == (50.0, 30.0)
    assert (cfg.window, cfg.sliding) == (4096, (True, False, True))
    assert (cfg.head_dim, cfg.scale, cfg.tied) == (256, 0.0625, True)


@pytest.mark.parametrize(
    ("family", "layers", "hidden", "heads", "scalar"),
    [
        (gemma2, 26, 2304, 8, 256),
        (gemma2, 46, 4608, 32, 144),
        (gemma3_text, 34, 2560, 8, 256),
        (gemma3_text, 62, 5376, 32, 168),
    ],
)
def test_gguf_files_scale_scores_by_heads_or_width(
    family: Any, layers: int, hidden: int, heads: int, scalar: int
) -> None:
    """As llama.cpp does, which knows the 27B models by their layers."""
    a = family.GGUF.architecture
    metadata = {
        f"{a}.block_count": layers,
        f"{a}.embedding_length": hidden,
        f"{a}.feed_forward_length": 4 * hidden,
        f"{a}.context_length": 8192,
        f"{a}.vocab_size": 256000,
        f"{a}.attention.head_count": heads,
        f"{a}.attention.head_count_kv": heads // 2,
        f"{a}.attention.key_length": 256 if scalar == 256 else 128,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-6,
    }
    plain = family.Config.from_dict(family.config_from_gguf(metadata, {}))
    assert plain.scale == scalar**-0.5
    assert any(plain.sliding) == (family is gemma2)  # which has windows of 4096 without a key
    windows = {f"{a}.attention.sliding_window": 512}
    cfg = family.Config.from_dict(family.config_from_gguf(metadata | windows, {}))
    every = 2 if family is gemma2 else 6
    assert cfg.window == 512
    assert cfg.sliding == tuple((i + 1) % every != 0 for i in range(layers))
    pattern = {f"{a}.attention.sliding_window_pattern": 3}
    cfg = family.Config.from_dict(family.config_from_gguf(metadata | windows | pattern, {}))
    assert cfg.sliding[:4] == (True, True, False, True)


@pytest.mark.parametrize(
    ("family", "key", "value", "message"),
    [
        ("gemma2", "hidden_activation", "gelu", "'gelu' is not supported"),
        ("gemma2", "query_pre_attn_scalar", 0, "scalar': expected 0.001..1e"),
        (
            "gemma2",
            "query_pre_attn_scalar",
            float("nan"),
            "scalar': expected 0.001..1e",
        ),
        ("gemma2", "attn_logit_softcapping", 0.0, "attn_logit_softcapping': expected 0.001"),
        ("gemma2", "attn_logit_softcapping", "50", "'attn_logit_softcapping': expected float"),
        (
            "gemma2",
            "final_logit_softcapping",
            float("inf"),
            "logit_softcapping': expected 0",
        ),
        ("gemma2", "sliding_window", 0, "'sliding_window': expected 1"),
        ("gemma2", "layer_types", ["sliding_attention"], "expected 2 layer_types, found 1"),
        ("gemma2", "layer_types", [{}, "full_attention"], "layer type {} is not supported"),
        ("gemma3_text", "sliding_window_pattern", 0, "'sliding_window_pattern': expected 1"),
        ("gemma3_text", "rope_parameters", 3, "rope_parameters to be an object"),
        ("gemma3_text", "rope_parameters", {"full_attention": 3}, "rope parameters to be objects"),
        (
            "gemma3_text",
            "rope_parameters",
            {"sliding_attention": {"rope_theta": -1}},
            "rope_theta': expected 1",
        ),
        ("gemma3_text", "text_config", [], "text_config to be an object"),
    ],
)
def test_configurations_that_do_not_fit(
    family: str, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    name = {"gemma2": "caps_and_alternating_windows"}.get(family, "two_ropes_and_linear_scaling")
    folder = rewritten(
        read_golden(family, name).folder, tmp_path / "m", lambda c: c.update({key: value})
    )
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        build(folder)
