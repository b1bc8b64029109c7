"""Language models beside towers, and states: what is missing or of another length is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import family_files
import numpy as np
import pytest
from family_files import language_model, rewritten, to_gguf
from gguf_writer import write_gguf
from golden import golden_names, read_golden
from llama_files import build
from safetensors.numpy import save_file

from slmq import CheckpointError
from slmq.conversion.convert import convert

WRAPPERS = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "mistral3": "ministral3",
    "qwen3_5": "qwen3_5_text",
}
wrappers = pytest.mark.parametrize("wrapper", WRAPPERS)


def wrapped(folder: Path, wrapper: str, **parts: Any) -> Path:
    """A golden of the family in a configuration with these parts."""
    family = WRAPPERS[wrapper]
    source = read_golden(family, golden_names(family)[0]).folder

    def wrap(config: dict[str, Any]) -> None:
        text = dict(config)
        config.clear()
        config.update(model_type=wrapper, text_config=text, vision_config={"hidden_size": 8})
        config.update(parts)
        for part in [part for part, value in parts.items() if value is Ellipsis]:
            del config[part]

    return rewritten(source, folder, wrap)


@wrappers
@pytest.mark.parametrize("others", [{}, {"audio_config": {"hidden_size": 8}}], ids=["one", "two"])
def test_configurations_without_a_text_part(
    wrapper: str, others: dict[str, Any], tmp_path: Path
) -> None:
    folder = wrapped(tmp_path / "m", wrapper, text_config=..., **others)
    said = ", ".join(["vision_config", *others])
    with pytest.raises(CheckpointError, match=rf"text_config, .* beside {said}; found none") as e:
        build(folder)
    assert str(folder) in str(e.value)


@wrappers
@pytest.mark.parametrize("part", [None, [], 3], ids=str)
def test_text_parts_that_are_none(wrapper: str, part: Any, tmp_path: Path) -> None:
    folder = wrapped(tmp_path / "m", wrapper, text_config=part)
    with pytest.raises(CheckpointError, match="expected text_config to be an object") as caught:
        build(folder)
    assert str(folder) in str(caught.value)


@wrappers
def test_files_with_a_tower_alone(wrapper: str, tmp_path: Path) -> None:
    folder = wrapped(tmp_path / "m", wrapper)
    tower = {"vision_tower.patch_embed.weight": np.ones((8, 4), np.float32)}
    save_file(tower, folder / "model.safetensors", {"format": "pt"})
    for read in (build, lambda path: convert(path, tmp_path / "packed")):
        with pytest.raises(CheckpointError, match="language model's tensors, found none of") as e:
            read(folder)
        assert str(folder) in str(e.value)


# --- states, sinks and biases of another length ---------------------------------------------------


def cut(part: str, axis: int = 0) -> Callable[[dict[str, Any]], None]:
    """Takes the last row, or column, of the first tensor whose name ends so."""

    def change(weights: dict[str, Any]) -> None:
        name = next(name for name in sorted(weights) if name.endswith(part))
        kept = np.arange(weights[name].shape[axis] - 1)
        weights[name] = np.ascontiguousarray(weights[name].take(kept, axis))

    return change


@pytest.mark.parametrize(
    ("family", "name", "part", "axis"),
    [
        ("lfm2", "three_taps", "conv.conv.weight", 2),
        ("lfm2", "three_taps", "conv.conv.weight", 0),
        ("lfm2_moe", "biased_choice", "conv.conv.weight", 2),
        ("lfm2_moe", "biased_choice", "expert_bias", 0),
        ("qwen3_5_text", "shared_keys", "conv1d.weight", 2),
        ("qwen3_5_text", "shared_keys", "conv1d.weight", 0),
        ("qwen3_5_text", "shared_keys", "linear_attn.A_log", 0),
        ("qwen3_5_text", "shared_keys", "linear_attn.dt_bias", 0),
        ("qwen3_5_text", "shared_keys", "linear_attn.norm.weight", 0),
        ("qwen3_5_text", "shared_keys", "linear_attn.in_proj_b.weight", 0),
        ("gpt_oss", "sinks_and_windows", "self_attn.sinks", 0),
    ],
)
def test_states_of_another_length(
    family: str, name: str, part: str, axis: int, tmp_path: Path
) -> None:
    source = read_golden(family, name).folder
    before = language_model(source)[1]
    full = next(tensor for tensor in sorted(before) if tensor.endswith(part))
    shape = list(before[full].shape)
    shape[axis] -= 1
    folder = rewritten(source, tmp_path / "m", lambda c: c, cut(part, axis))
    with pytest.raises(CheckpointError) as caught:
        build(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert full in message
    assert "expected" in message
    assert f"found {shape}" in message


@pytest.mark.parametrize(
    ("family", "name", "key", "value", "message"),
    [
        ("lfm2", "three_taps", "lfm2.shortconv.l_cache", 4, "shortconv.conv.*expected"),
        ("lfm2", "three_taps", "lfm2.shortconv.l_cache", 0, "expected"),
        ("qwen3_5_text", "shared_keys", "qwen35.ssm.conv_kernel", 3, "ssm_conv1d.*expected"),
        ("qwen3_5_text", "shared_keys", "qwen35.ssm.time_step_rank", 3, "expected"),
        ("qwen3_5_text", "shared_keys", "qwen35.ssm.state_size", 12, "expected"),
        ("qwen3_5_text", "shared_keys", "qwen35.ssm.inner_size", 20, "expected"),
    ],
)
def test_states_of_another_length_in_gguf(
    family: str,
    name: str,
    key: str,
    value: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(path: Path, keys: dict[str, Any], tensors: dict[str, Any]) -> Path:
        assert keys[key] != value
        return write_gguf(path, keys | {key: value}, tensors)

    monkeypatch.setattr(family_files, "write_gguf", write)
    path = to_gguf(read_golden(family, name).folder, tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=message) as caught:
        build(path)
    assert str(path) in str(caught.value)
