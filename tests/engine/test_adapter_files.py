"""Adapters of mlx-lm and of llama.cpp: in every family the bits of the same adapter of PEFT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from family_files import ARCHITECTURES, gguf_pairs, read_config
from golden import read_golden
from lora_files import (
    ALPHA,
    answer_with,
    gguf_file,
    layer_modules,
    mlx_folder,
    peft_folder,
    random_pairs,
)
from numpy_weights import read_safetensors
from training_cases import case_of

from slmq.errors import CheckpointError, UnsupportedModelError

F32 = npt.NDArray[np.float32]
FAMILIES = (
    "arcee", "exaone4", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite",
    "granitemoehybrid", "hunyuan_v1_dense", "lfm2", "llama", "ministral3", "mistral", "olmo2",
    "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm",
)  # fmt: skip


@pytest.mark.parametrize("format", ["f32", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_peft_mlx_and_llama_cpp_are_one(family: str, format: str, tmp_path: Path) -> None:
    golden = read_golden(family, case_of(family))
    weights = read_safetensors(golden.folder / "model.safetensors")
    conv = family == "gpt2"  # its matrices lie as [k, n]
    modules = [name for name in layer_modules(weights) if "norm" not in name]
    pairs = random_pairs(weights, modules, rank=4, transposed=conv)
    model_type = read_config(golden.folder)["model_type"]
    files = [
        peft_folder(tmp_path / "peft", pairs),
        mlx_folder(tmp_path / "mlx", pairs, ALPHA / 4),
        gguf_file(
            tmp_path / "lora.gguf",
            gguf_pairs(golden.folder, pairs),
            **{"general.architecture": ARCHITECTURES.get(model_type, model_type)},
        ),
    ]
    ids = golden.tokens[0][:20]
    base = answer_with(golden.folder, None, ids, format)
    answers = [answer_with(golden.folder, file, ids, format) for file in files]
    assert (answers[0] == answers[1]).all()
    assert (answers[0] == answers[2]).all()
    assert not (answers[0] == base).all()


def test_the_base_of_a_gguf_adapter(tmp_path: Path) -> None:
    """Named by its architecture."""
    for family, said, message in (
        ("qwen3", "llama", "expected an adapter of qwen3, got one of 'llama'"),
        ("mistral", "mistral3", "expected an adapter of llama, got one of 'mistral3'"),
        ("granitemoehybrid", "llama", "expected an adapter of granite, got one of 'llama'"),
    ):
        golden = read_golden(family, case_of(family))
        weights = read_safetensors(golden.folder / "model.safetensors")
        modules = [m for m in layer_modules(weights) if "mlp" in m][:1]
        pairs = gguf_pairs(golden.folder, random_pairs(weights, modules, rank=2))
        path = gguf_file(tmp_path / f"{family}.gguf", pairs, **{"general.architecture": said})
        with pytest.raises(CheckpointError, match=message):
            answer_with(golden.folder, path, golden.tokens[0][:4])


def test_experts_take_no_adapters(tmp_path: Path) -> None:
    golden = read_golden("qwen3_moe", case_of("qwen3_moe"))
    weights = read_safetensors(golden.folder / "model.safetensors")
    experts = [k.removesuffix(".weight") for k in weights if ".experts." in k and k.endswith("t")]
    path = peft_folder(tmp_path / "adapter", random_pairs(weights, experts[:1], rank=2))
    with pytest.raises(CheckpointError, match=rf"fit no weight of this model.*{experts[0]}"):
        answer_with(golden.folder, path, golden.tokens[0][:4])
    a, b = np.ones((4, 2, 8), np.float32), np.ones((4, 8, 2), np.float32)
    path = gguf_file(tmp_path / "lora.gguf", {"blk.0.ffn_gate_exps": (a, b)})
    with pytest.raises(UnsupportedModelError, match=r"ffn_gate_exps.*experts take no adapters"):
        answer_with(golden.folder, path, golden.tokens[0][:4])
