"""Adapters that scale and shift what layers give: as merged, alone and among others, everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from golden import GOLDENS, read_golden
from kernel_cases import ISAS
from llama_files import logits_of, relative_error
from lora_files import ALPHA, layer_modules, mlx_folder, model_of, peft_folder, random_pairs
from numpy_weights import Weights, read_safetensors
from safetensors.numpy import load_file, save_file
from test_low_rank import answer, loaded_from, plan_of

import slmq
from slmq.engine.adapters import fit
from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.weights.lora import read_lora

BIASES = GOLDENS / "llama" / "biases"


def changed_folder(folder: Path, weights: Weights, *, rank: int, seed: int, bias: bool) -> Path:
    """An adapter with lengths of rows and, if wanted, biases of its own."""
    modules = layer_modules(weights)
    pairs = random_pairs(weights, modules, rank=rank, seed=seed)
    more = {"bias": "all"} if bias else {}
    peft_folder(folder, pairs, use_dora=True, **more)
    file = folder / "adapter_model.safetensors"
    tensors, rng = load_file(file), np.random.default_rng(seed)
    for module in modules:
        n = pairs[module][1].shape[0]
        lengths = np.linalg.norm(weights[f"{module}.weight"], axis=1) * rng.uniform(0.7, 1.4, n)
        name = f"base_model.model.{module}.lora_magnitude_vector"
        tensors[name] = lengths.astype(np.float32)
        if bias and f"{module}.bias" in weights:
            name = f"base_model.model.{module}.base_layer.bias"
            tensors[name] = rng.normal(0, 0.1, n).astype(np.float32)
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize("format", ["f32", "int8", "q8rs", "int4"])
def test_rows_with_and_without(format: str, tmp_path: Path, tiny_model_path: Path) -> None:
    """Each row has the bits that it has alone; those of others, and of none, are untouched."""
    golden = read_golden("llama", "biases")
    weights = read_safetensors(BIASES / "model.safetensors")
    folders = [
        changed_folder(tmp_path / "dora", weights, rank=5, seed=1, bias=False),
        changed_folder(tmp_path / "both", weights, rank=17, seed=2, bias=True),
        peft_folder(tmp_path / "lora", random_pairs(weights, layer_modules(weights), rank=3)),
    ]
    loaded = loaded_from(BIASES, format)
    tokens = [golden.tokens[0][:40], golden.tokens[0][:23], golden.tokens[0][:31]]
    want = None
    for isa in ISAS:
        for threads in (1, 3):
            plan = plan_of(loaded, isa=isa, threads=threads)
            dora, both, lora = (fit(plan, loaded, read_lora(folder)) for folder in folders)
            rows = [(tokens[0], dora), (tokens[1], None), (tokens[2], both), (tokens[2], lora)]
            want = want or [answer(plan, [row])[0] for row in rows]
            for chunk in (1, 7, 16):
                for got, alone in zip(answer(plan, rows, chunk), want, strict=True):
                    assert (got == alone).all()
    assert want is not None
    assert (want[1] == logits_of(BIASES, tokens[1], format=format)).all()
    base = model_of(BIASES, tmp_path / "base", tiny_model_path)
    made = slmq.merge(base, folders[1], tmp_path / "merged", local_files_only=True)
    merged = logits_of(made, tokens[2])
    lost = relative_error(logits_of(BIASES, tokens[2], format=format), logits_of(BIASES, tokens[2]))
    assert relative_error(want[2], merged) < max(3e-5, 3 * lost)
    assert relative_error(want[3], merged) > 1e-2


def test_the_digest_has_lengths_and_biases(tmp_path: Path) -> None:
    weights = read_safetensors(BIASES / "model.safetensors")
    loaded = loaded_from(BIASES)
    plan = plan_of(loaded)
    digests = set()
    for i, bias in enumerate((False, True)):
        folder = changed_folder(tmp_path / f"{i}", weights, rank=2, seed=1, bias=bias)
        digests.add(fit(plan, loaded, read_lora(folder)).digest)
    assert len(digests) == 2


def test_lengths_that_do_not_fit(tmp_path: Path) -> None:
    weights = read_safetensors(BIASES / "model.safetensors")
    loaded = loaded_from(BIASES)
    plan = plan_of(loaded)
    folder = changed_folder(tmp_path / "adapter", weights, rank=2, seed=1, bias=True)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    bias = next(name for name in tensors if name.endswith("base_layer.bias"))
    save_file(tensors | {bias: np.zeros(3, np.float32)}, file)
    with pytest.raises(CheckpointError, match=r"expected lengths and biases of \d+ values"):
        fit(plan, loaded, read_lora(folder))
    save_file(tensors | {"base_model.model.model.norm.bias": np.zeros(4, np.float32)}, file)
    with pytest.raises(UnsupportedModelError, match=r"replaces model\.norm\.bias.*slmq merge"):
        fit(plan, loaded, read_lora(folder))


def test_mlx_has_the_same_bits(tmp_path: Path) -> None:
    weights = read_safetensors(BIASES / "model.safetensors")
    loaded = loaded_from(BIASES, "int4")
    plan = plan_of(loaded)
    peft = changed_folder(tmp_path / "peft", weights, rank=4, seed=1, bias=False)
    pairs = random_pairs(weights, layer_modules(weights), rank=4, seed=1)
    mlx = mlx_folder(tmp_path / "mlx", pairs, ALPHA / 4)
    config = json.loads((mlx / "adapter_config.json").read_text("utf-8"))
    (mlx / "adapter_config.json").write_text(json.dumps(config | {"fine_tune_type": "dora"}))
    tensors = load_file(mlx / "adapters.safetensors")
    for name, values in load_file(peft / "adapter_model.safetensors").items():
        module, _, kind = name.removeprefix("base_model.model.").rpartition(".")
        if kind == "lora_magnitude_vector":
            tensors[f"{module}.m"] = values
    save_file(tensors, mlx / "adapters.safetensors")
    tokens = read_golden("llama", "biases").tokens[0][:20]
    answers = [
        answer(plan, [(tokens, fit(plan, loaded, read_lora(folder)))])[0] for folder in (peft, mlx)
    ]
    assert (answers[0] == answers[1]).all()
