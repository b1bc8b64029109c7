"""Adapters that PEFT itself has made, in every family and with every option that is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from golden import GOLDENS, read_golden
from llama_files import relative_error
from lora_files import answer_with, model_of, saved_by_peft
from training_cases import case_of

pytest.importorskip("peft")
pytest.importorskip("transformers", minversion="5")

import slmq
from slmq.errors import UnsupportedModelError
from slmq.models.registry import FAMILIES
from slmq.weights.lora import read_lora

F32 = npt.NDArray[np.float32]
# PEFT's "all-linear" holds experts of these, which take no adapters (test_adapter_files.py).
EXPERTS = {"lfm2_moe", "olmoe", "qwen3_moe"}
DECODERS = sorted(set(FAMILIES.values()) - EXPERTS)
PLAIN = {"gemma4_text": "table_and_shared_keys"}  # without towers, which PEFT would train, too
TOKENS = 40
# Queries and values where a family has them as matrices of their own; otherwise what holds both.
SOME = {
    "gpt2": ["c_attn"], "gpt_neox": ["query_key_value"], "phi3": ["qkv_proj"],
    "qwen3_5_text": ["q_proj", "v_proj", "in_proj_qkv"],
}  # fmt: skip
LAYER = r"(?:.*\.)?(?:layers|h)\.0\..*"
LLAMA = "llama"


def options(family: str) -> dict[str, dict[str, Any]]:
    """Configurations of PEFT, by what is special about each."""
    some = SOME.get(family, ["q_proj", "v_proj"])
    name = some[0]
    return {
        "all": {"r": 4, "target_modules": "all-linear"},
        "queries and values": {"r": 8, "target_modules": some},
        "rank 1": {"r": 1, "lora_alpha": 5, "target_modules": "all-linear"},
        "rank 64, by its root": {"r": 64, "use_rslora": True, "target_modules": "all-linear"},
        "patterns": {
            "r": 4,
            "target_modules": "all-linear",
            "rank_pattern": {name: 2, r"layers\.1\.mlp\.\w+_proj": 7},
            "alpha_pattern": {rf"(layers|h)\.0\.\w+\.{name}": 32.0, name: 3.0},
        },
        "one layer": {"r": 3, "target_modules": LAYER + rf"\.{name}"},
    }


@pytest.mark.parametrize("family", DECODERS)
def test_answers_of_peft(family: str, tmp_path: Path) -> None:
    golden = read_golden(family, PLAIN.get(family, case_of(family)))
    ids = golden.tokens[0][:TOKENS]
    for i, (name, config) in enumerate(options(family).items()):
        want, folder = saved_by_peft(golden.folder, tmp_path / f"{i}", ids, config)
        got = answer_with(golden.folder, folder, ids)
        assert relative_error(got, want) < 3e-5, name
        assert relative_error(golden.logits[0][:TOKENS], want) > 1e-3, name  # it does something


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_answers_of_peft_on_integers(
    family: str, format: str, tiny_model_path: Path, tmp_path: Path
) -> None:
    """PEFT on the weights that the integers mean: what is left is the rounding of activations.

    That of the model itself, without an adapter, is as large: eight bits beside int4 add nothing.
    """
    golden = read_golden(family, case_of(family))
    ids = golden.tokens[0][:TOKENS]
    base = model_of(golden.folder, tmp_path / "base", tiny_model_path)
    packed = slmq.quantize(base, tmp_path / "packed", format=format, method="rtn").path
    floats = slmq.dequantize(packed, tmp_path / "floats", dtype="f32")
    config = {"r": 16, "target_modules": "all-linear"}
    want, folder = saved_by_peft(floats, tmp_path / "adapter", ids, config)
    rounded = answer_with(packed, folder, ids, None)
    exact = answer_with(packed, folder, ids, None, activations="exact")
    plain = answer_with(packed, None, ids, None, activations="exact")
    assert relative_error(exact, want) < 1e-3
    lost = relative_error(answer_with(packed, None, ids, None), plain)
    assert relative_error(rounded, want) < 1.2 * lost < 4e-2


# More than sums ------------------------------------------------------------------------------

MORE = {
    "dora": (LLAMA, "biases", {"use_dora": True, "target_modules": "all-linear"}),
    "dora, turned": ("gpt2", "untied", {"use_dora": True, "target_modules": ["c_attn"]}),
    "dora and biases": (LLAMA, "biases", {"use_dora": True, "bias": "lora_only"}),
    "biases of layers": (LLAMA, "biases", {"bias": "lora_only"}),
    "all biases": (LLAMA, "biases", {"bias": "all"}),
    "biases of its own": (LLAMA, "biases", {"lora_bias": True}),
}
WHOLE = {
    "biases of norms": ("gpt2", "untied", {"bias": "all", "target_modules": ["c_fc"]}, "replaces"),
    "a head": (LLAMA, "gqa_untied", {"modules_to_save": ["lm_head"]}, r"replaces lm_head\.weight"),
}


def saved(
    family: str, case: str, config: dict[str, Any], tokens_of: Path, folder: Path
) -> tuple[Path, list[int], F32, Path]:
    """A model, some tokens, the logits of PEFT, and the adapter."""
    golden = read_golden(family, case)
    ids = golden.tokens[0][:TOKENS]
    base = model_of(golden.folder, folder / "base", tokens_of)
    config = {"r": 4, "target_modules": ["q_proj", "v_proj"], **config}
    want, adapter = saved_by_peft(base, folder / "adapter", ids, config)
    assert relative_error(golden.logits[0][:TOKENS], want) > 1e-3
    return base, ids, want, adapter


@pytest.mark.parametrize("name", MORE)
def test_lengths_and_biases(name: str, tiny_model_path: Path, tmp_path: Path) -> None:
    """DoRA and biases, beside a running model and merged."""
    base, ids, want, adapter = saved(*MORE[name], tiny_model_path, tmp_path)
    assert relative_error(answer_with(base, adapter, ids), want) < 3e-5
    made = slmq.merge(base, adapter, tmp_path / "merged", local_files_only=True)
    assert relative_error(answer_with(made, None, ids), want) < 3e-5


@pytest.mark.parametrize("name", ["dora", "biases of layers"])
def test_lengths_and_biases_on_integers(name: str, tiny_model_path: Path, tmp_path: Path) -> None:
    family, case, config = MORE[name]
    base = model_of(read_golden(family, case).folder, tmp_path / "base", tiny_model_path)
    packed = slmq.quantize(base, tmp_path / "packed", format="int4", method="rtn").path
    floats = slmq.dequantize(packed, tmp_path / "floats", dtype="f32")
    ids = read_golden(family, case).tokens[0][:TOKENS]
    config = {"r": 4, "target_modules": ["q_proj", "v_proj"], **config}
    want, adapter = saved_by_peft(floats, tmp_path / "adapter", ids, config)
    exact = answer_with(packed, adapter, ids, None, activations="exact")
    assert relative_error(exact, want) < 1e-3


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_merged_only(name: str, tiny_model_path: Path, tmp_path: Path) -> None:
    """Norms and a head: refused beside a running model, put into the weights by merging."""
    *model, message = WHOLE[name]
    base, ids, want, adapter = saved(*model, tiny_model_path, tmp_path)
    with pytest.raises(UnsupportedModelError, match=f"{message}.*slmq merge"):
        answer_with(base, adapter, ids)
    made = slmq.merge(base, adapter, tmp_path / "merged", local_files_only=True)
    assert relative_error(answer_with(made, None, ids), want) < 3e-5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"modules_to_save": ["embed_tokens"]}, r"model\.embed_tokens\.weight.*modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"target_modules": ["embed_tokens"]}, "embeddings and other whole modules"),
        ({"init_lora_weights": "olora"}, "olora.*changes the base model"),
    ],
)
def test_what_is_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    golden = read_golden(LLAMA, "gqa_untied")
    config = {"r": 4, "target_modules": ["q_proj"], **config}
    _, folder = saved_by_peft(golden.folder, tmp_path / "adapter", golden.tokens[0][:8], config)
    with pytest.raises(UnsupportedModelError, match=message):
        read_lora(folder)


def test_goldens_are_of_every_family() -> None:
    assert all((GOLDENS / family / case_of(family)).is_dir() for family in DECODERS)
