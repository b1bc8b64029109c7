"""Which of several keys of a configuration counts: as in transformers and in llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_files import changed, logits_of, to_gguf

from slmq.errors import UnsupportedModelError
from slmq.models.registry import family_named

TOKENS = list(range(3, 43))
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def frequencies(family: str, **config: Any) -> list[float]:
    made = family_named(family, "test").Config.from_dict(SIZES | config)
    rope: Any = made.rope  # type: ignore[attr-defined]
    found: list[float] = rope.at(256).frequencies.tolist()
    return found


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"])
def test_a_rope_scaling_that_was_added_counts_before_rope_parameters(family: str) -> None:
    """What Qwen's card says to add to config.json, in a file that transformers 5 wrote."""
    both = frequencies(family, rope_parameters=PLAIN, rope_scaling=YARN)
    assert both == frequencies(family, rope_parameters=PLAIN | YARN)
    assert both != frequencies(family, rope_parameters=PLAIN)


def test_the_logits_are_those_of_the_added_scaling(tmp_path: Path) -> None:
    def added(config: dict[str, Any]) -> None:
        config["rope_parameters"] = PLAIN
        config["rope_scaling"] = YARN

    def alone(config: dict[str, Any]) -> None:
        config["rope_parameters"] = PLAIN | YARN

    got = logits_of(changed("gqa_untied", tmp_path / "added", config=added), TOKENS)
    want = logits_of(changed("gqa_untied", tmp_path / "alone", config=alone), TOKENS)
    assert np.array_equal(got, want)


def test_an_empty_rope_scaling_does_not_count() -> None:
    linear = {"rope_type": "linear", "factor": 2.0}
    assert frequencies("llama", rope_scaling={}, rope_parameters=linear) == frequencies(
        "llama", rope_parameters=linear
    )


def test_a_scaling_takes_its_base_from_around_it() -> None:
    inside = frequencies("qwen3", rope_scaling=YARN | {"rope_theta": 500.0}, rope_theta=700.0)
    assert inside == frequencies("qwen3", rope_parameters=YARN | {"rope_theta": 500.0})
    around = frequencies(
        "qwen3", rope_scaling=YARN, rope_parameters={"rope_theta": 500.0}, rope_theta=700.0
    )
    assert around == frequencies("qwen3", rope_parameters=YARN | {"rope_theta": 700.0})


def test_a_base_that_only_rope_parameters_has_is_kept_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = frequencies("qwen3", rope_scaling=YARN, rope_parameters={"rope_theta": 1e6})
    assert kept == frequencies("qwen3", rope_parameters=YARN | {"rope_theta": 1e6})
    assert "rope_theta" in caplog.text


def test_phi3_takes_the_added_scaling_too() -> None:
    added = {"type": "yarn", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    old = {"original_max_position_embeddings": 64}
    got = frequencies("phi3", rope_scaling=added, rope_parameters=PLAIN, **old)
    assert got == frequencies(
        "phi3", rope_parameters=PLAIN | added | {"rope_type": "longrope"}, **old
    )
    assert got != frequencies("phi3", rope_parameters=PLAIN, **old)


def test_gemma3_scales_the_layers_without_a_window() -> None:
    """transformers updates the rope of these layers with what was added."""
    ropes = {"full_attention": {"rope_type": "default", "rope_theta": 5000.0}}
    added = {"type": "linear", "factor": 8.0}
    scaled = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0}}
    got = frequencies("gemma3_text", rope_parameters=ropes, rope_scaling=added)
    assert got == frequencies("gemma3_text", rope_parameters=scaled)
    assert got != frequencies("gemma3_text", rope_parameters=ropes)


def test_gpt_neox_takes_its_own_names_first() -> None:
    got = frequencies("gpt_neox", rotary_emb_base=500.0, rope_theta=700.0, rotary_pct=0.5)
    assert got == frequencies("gpt_neox", rope_theta=500.0, partial_rotary_factor=0.5)


def test_ropes_by_type_of_layer_are_refused_where_a_family_has_one() -> None:
    with pytest.raises(UnsupportedModelError, match="by type of layer"):
        frequencies("llama", rope_parameters={"full_attention": PLAIN})


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.rope.scale_linear": 4.0},
        {"llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.factor": 4.0, "llama.rope.scale_linear": 2.0},
    ],
    ids=["old-key", "no-type", "both"],
)
def test_gguf_scalings_of_old_files_are_linear(tmp_path: Path, keys: dict[str, float]) -> None:
    now = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    want = logits_of(to_gguf("gqa_untied", tmp_path / "now.gguf", metadata=now), TOKENS)
    got = logits_of(to_gguf("gqa_untied", tmp_path / "old.gguf", metadata=keys), TOKENS)
    assert np.array_equal(got, want)


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.rope.scale_linear": 0.0},
        {"llama.rope.scaling.type": "linear"},
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
    ],
    ids=["zero", "no-factor", "none"],
)
def test_gguf_scalings_that_are_none(tmp_path: Path, keys: dict[str, Any]) -> None:
    want = logits_of(to_gguf("gqa_untied", tmp_path / "plain.gguf"), TOKENS)
    got = logits_of(to_gguf("gqa_untied", tmp_path / "old.gguf", metadata=keys), TOKENS)
    assert np.array_equal(got, want)


def test_gguf_attn_factor_multiplies_sines_and_cosines(tmp_path: Path) -> None:
    """As yarn's attention_factor does, whatever the kind of scaling."""
    scaling = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    keys = scaling | {"llama.rope.scaling.attn_factor": 0.5}
    got = logits_of(to_gguf("gqa_untied", tmp_path / "half.gguf", metadata=keys), TOKENS)
    plain = logits_of(to_gguf("gqa_untied", tmp_path / "whole.gguf", metadata=scaling), TOKENS)
    assert not np.array_equal(got, plain)
    linear = {"llama.rope.scaling.factor": 4.0, "llama.rope.scaling.attn_factor": 0.5}
    config = family_named("llama", "test").GGUF.config(
        {
            "llama.attention.head_count": 4,
            "llama.embedding_length": 64,
            "llama.feed_forward_length": 96,
            "llama.block_count": 1,
            "llama.context_length": 256,
            "llama.vocab_size": 100,
            "llama.attention.layer_norm_rms_epsilon": 1e-6,
            **linear,
        },
        {},
    )
    made: Any = family_named("llama", "test").Config.from_dict(config)
    assert made.rope.at(256).factor == 0.5


# What holds where config.json is silent -------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "config", "found"),
    [
        ("mistral", {}, {"window": 4096, "n_kv_heads": 8, "max_positions": 131072}),
        ("mistral", {"sliding_window": None}, {"window": 0}),
        ("mistral", {"num_key_value_heads": None}, {"n_kv_heads": 8}),
        ("phi3", {}, {"rms_norm_eps": 1e-5, "max_positions": 4096}),
        ("gemma2", {}, {"n_kv_heads": 4, "max_positions": 8192}),
        ("gemma", {}, {"max_positions": 8192}),
        ("qwen2", {}, {"max_positions": 32768}),
        ("qwen3", {}, {"max_positions": 32768}),
        ("stablelm", {}, {"max_positions": 4096}),
        ("llama", {"hidden_act": "swish"}, {"max_positions": 2048}),
    ],
)
def test_defaults_are_those_of_transformers(
    family: str, config: dict[str, Any], found: dict[str, Any]
) -> None:
    said = ("max_position_embeddings", "num_key_value_heads")
    sizes = {k: v for k, v in SIZES.items() if k not in said}
    sizes["num_attention_heads"] = 8
    made = family_named(family, "test").Config.from_dict(sizes | config)
    assert {name: getattr(made, name) for name in found} == found


def test_gpt2_by_the_names_of_others() -> None:
    """transformers takes both."""
    own = {"vocab_size": 100, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128}
    other = {
        "vocab_size": 100,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 128,
    }
    gpt2 = family_named("gpt2", "test")
    assert gpt2.Config.from_dict(other) == gpt2.Config.from_dict(own)
