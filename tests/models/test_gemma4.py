"""Gemma 4: its table that stays in the file, shared keys, the wrapper, and what it refuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import rewritten, to_gguf
from golden import read_golden
from llama_files import build, feed, logits_of

from slmq import CheckpointError, UnsupportedModelError, _native
from slmq.checkpoint import open_checkpoint
from slmq.conversion.convert import convert
from slmq.models import gemma4_text
from slmq.models.loading import load_weights

TABLE = read_golden("gemma4_text", "table_and_shared_keys")
TOWERS = read_golden("gemma4_text", "beside_towers")
TOKENS = TABLE.tokens[1]


def table_of(path: Path, **options: Any) -> Any:
    with open_checkpoint(path) as checkpoint:
        loaded = load_weights(checkpoint, threads=1, **({"memory": "small"} | options))
    return loaded.weights.table.held


# --- the table --------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [None, "f32", "f16", "int8", "int4"])
def test_the_table_stays_in_its_file(format: str | None, tmp_path: Path) -> None:
    """Of floats and of GGUF's types, whatever other weights become."""
    paths = [TABLE.folder, to_gguf(TABLE.folder, tmp_path / "f16.gguf", "f16")]
    for path in paths:
        held = table_of(path, format=format)
        assert isinstance(held, _native.RowTable)
        assert (held.n, held.k) == (48, 8 * 32)


@pytest.mark.parametrize("stored", ["f16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_its_rows_are_those_of_a_packed_table(stored: str, tmp_path: Path) -> None:
    """A folder that `convert` wrote has it packed; the answers are the same."""
    path = to_gguf(TABLE.folder, tmp_path / "m.gguf", stored)
    folder = convert(path, tmp_path / "packed")
    assert isinstance(table_of(path, format=None), _native.RowTable)
    assert isinstance(table_of(folder, format=None, memory="mmap"), _native.Matrix)
    want = logits_of(folder, TOKENS, format=None, kv_dtype="f16")
    assert np.array_equal(logits_of(path, TOKENS, format=None, kv_dtype="f16"), want)


def test_gguf_has_the_bits_of_the_folder(tmp_path: Path) -> None:
    """Also the rope of layers without a window, whose still channels a tensor says."""
    path = to_gguf(TABLE.folder, tmp_path / "m.gguf")
    assert np.array_equal(logits_of(path, TOKENS), logits_of(TABLE.folder, TOKENS))


def test_a_table_that_holds_no_numbers_gives_none(tmp_path: Path) -> None:
    name = "model.embed_tokens_per_layer.weight"

    def spoil(weights: dict[str, Any]) -> None:
        weights[name] = weights[name].copy()
        weights[name][TOKENS[3], 5] = np.inf

    folder = rewritten(TABLE.folder, tmp_path / "m", lambda c: c, spoil)
    logits = logits_of(folder, TOKENS[:5])
    assert np.isfinite(logits[:3]).all()
    assert np.isnan(logits[3]).all()


# --- shared keys ------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "int8", "int4"])
def test_layers_without_keys_take_no_room(kv_dtype: str) -> None:
    """Four of eight layers have keys: two of one head of 16 channels, two of one of 32."""
    made = build(TABLE.folder, kv_dtype=kv_dtype)
    plain = read_golden("gemma4_text", "keys_for_values")
    assert build(plain.folder, kv_dtype=kv_dtype).native.page_bytes > 0
    channels = 2 * 16 + 2 * 32
    if kv_dtype == "int4":  # keys of 16 channels take a group of 32
        keys, values = 4 * (16 + 2), 2 * (8 + 4) + 2 * (16 + 4)
        assert made.native.page_bytes == 64 * (keys + values)
        return
    element = {"f16": 2, "f32": 4, "int8": 1}[kv_dtype]
    scales = 2 * 4 * 4 if kv_dtype == "int8" else 0  # a float32 of every key and value
    assert made.native.page_bytes == 64 * (2 * channels * element + scales)


@pytest.mark.parametrize("kv_dtype", ["f16", "int8", "int4"])
@pytest.mark.parametrize("length", [0, 9, 40, 64, 70])
def test_forks_and_truncations_go_on_with_the_same_bits(length: int, kv_dtype: str) -> None:
    made = build(TABLE.folder, format=None, kv_dtype=kv_dtype, threads=2)
    sequence = made.cache.sequence()
    whole = feed(made, sequence, TOKENS)
    fork = sequence.fork(length)
    feed(made, fork, TOKENS[::-1])
    fork.truncate(length)
    sequence.truncate(length)
    for one in (fork, sequence):
        assert np.array_equal(feed(made, one, TOKENS[length:], cuts=[1, 4]), whole[length:])


# --- configurations ---------------------------------------------------------------------------


def test_the_language_model_beside_its_towers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "slmq"):
        build(TOWERS.folder)
    assert not [m for m in caplog.messages if "tower" in m or "embed_" in m]


def test_published_configurations_are_those_that_transformers_writes(tmp_path: Path) -> None:
    """Heads of layers without a window by two keys, not layer by layer."""
    golden = read_golden("gemma4_text", "keys_for_values")

    def publish(config: dict[str, Any]) -> None:
        del config["per_layer_config"]
        config.update(global_head_dim=20, num_global_key_value_heads=2)

    folder = rewritten(golden.folder, tmp_path / "m", publish)
    assert np.array_equal(
        logits_of(folder, golden.tokens[0]), logits_of(golden.folder, golden.tokens[0])
    )


def test_what_published_configurations_leave_out() -> None:
    """The last layer has no window, whatever the pattern; the others one in six."""
    cfg = gemma4_text.Config.from_dict({"num_hidden_layers": 7})
    assert cfg.sliding == (True,) * 5 + (False, False)
    assert (cfg.near, cfg.far) == ((4, 256), (4, 512))
    assert cfg.rope.rotary == 512
    frequencies = cfg.rope.at(1).frequencies
    assert (frequencies[:64] > 0).all()
    assert not frequencies[64:].any()
    assert cfg.sources == tuple(range(7))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"enable_moe_block": True, "num_experts": 8}, UnsupportedModelError, "with 8 experts"),
        (
            {"use_bidirectional_attention": "all"},
            UnsupportedModelError,
            "use_bidirectional_attention 'all'",
        ),
        ({"hidden_size_per_layer_input": 20}, UnsupportedModelError, "input 20: only multiples"),
        ({"hidden_size_per_layer_input": -1}, CheckpointError, "per_layer_input': expected 0"),
        ({"vocab_size_per_layer_input": 47}, CheckpointError, "at least vocab_size 48, found 47"),
        ({"num_kv_shared_layers": 9}, CheckpointError, "kv_shared_layers': expected 0..8, found 9"),
        ({"num_kv_shared_layers": 8}, CheckpointError, "num_kv_shared_layers: expected a layer"),
        ({"num_kv_shared_layers": 7}, CheckpointError, "of type full_attention in front of the"),
        ({"layer_types": ["full_attention"]}, CheckpointError, "expected 8 layer_types, found 1"),
        ({"final_logit_softcapping": -1.0}, CheckpointError, "softcapping': expected 0.001"),
        ({"hidden_activation": "silu"}, UnsupportedModelError, "supported: gelu_pytorch_tanh"),
        ({"per_layer_config": []}, CheckpointError, "'per_layer_config': expected dict"),
        ({"per_layer_config": {"1": 3}}, CheckpointError, "'1': expected dict, found 3"),
        (
            {"per_layer_config": {"1": {"head_dim": 8}, "3": {"head_dim": 32}}},
            UnsupportedModelError,
            "heads that differ among layers of one type",
        ),
        (
            {"per_layer_config": {"1": {"sliding_window": 8}}},
            UnsupportedModelError,
            "per_layer_config of layer 1: 'sliding_window' is not supported",
        ),
        ({"num_key_value_heads": 3}, CheckpointError, "num_attention_heads to be a multiple of"),
        ({"vocab_size_per_layer_input": 60}, CheckpointError, "per_layer.weight.*expected shape"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "spiral"}}},
            UnsupportedModelError,
            "rope scaling 'spiral' is not supported",
        ),
    ],
)
def test_what_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = rewritten(TABLE.folder, tmp_path / "m", lambda c: c.update(changes))
    with pytest.raises(error, match=message):
        build(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("feed_forward_length", [48] * 7 + [50], "expected one width, or the double"),
        ("feed_forward_length", [48] * 7, "feed_forward_length: expected 8 values, found 7"),
        ("attention.shared_kv_layers", 9, "expected 0..8, found 9"),
        ("expert_count", 4, "a mixture of 4 experts"),
    ],
)
def test_gguf_files_that_are_refused(key: str, value: Any, message: str, tmp_path: Path) -> None:
    path = to_gguf(TABLE.folder, tmp_path / "m.gguf")
    with open_checkpoint(path) as checkpoint:
        metadata = dict(checkpoint.metadata) | {f"gemma4.{key}": value}
        with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
            gemma4_text.config_from_gguf(metadata, checkpoint.tensors)
