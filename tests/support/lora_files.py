"""Random adapters in the files of PEFT, mlx-lm and llama.cpp, and the same merged into weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf_writer import write_gguf
from numpy_weights import Weights, read_safetensors
from safetensors.numpy import save_file

from slmq.checkpoint import open_checkpoint
from slmq.engine.adapters import fit
from slmq.engine.opening import record_plan
from slmq.engine.options import LoadOptions
from slmq.models.loading import load_weights
from slmq.weights.lora import read_lora

F32 = npt.NDArray[np.float32]
Pairs = dict[str, tuple[F32, F32]]  # by module: A [rank, k], B [n, rank]

ALPHA = 12.0


def layer_modules(weights: Weights) -> list[str]:
    """The linear layers within the layers of a decoder, by the names of their modules.

    Those of experts are left out: they take no adapters.
    """
    return [
        name.removesuffix(".weight")
        for name, w in weights.items()
        if name.endswith(".weight")
        and w.ndim == 2
        and any(p.isdigit() for p in name.split("."))
        and "_tower" not in name
        and ".experts." not in name
    ]


def random_pairs(
    weights: Weights, modules: Iterable[str], *, rank: int, transposed: bool = False, seed: int = 1
) -> Pairs:
    """A pair for each of these modules, of numbers that change answers."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for module in modules:
        shape = weights[f"{module}.weight"].shape
        n, k = shape[::-1] if transposed else shape
        a = rng.normal(0, k**-0.5, (rank, k)).astype(np.float32)
        pairs[module] = a, rng.normal(0, 0.05, (n, rank)).astype(np.float32)
    return pairs


def merged(weights: Weights, pairs: Pairs, scale: float, *, transposed: bool = False) -> Weights:
    """The weights with the products added, rounded to float32 once."""
    found = dict(weights)
    for module, (a, b) in pairs.items():
        delta = scale * (b.astype(np.float64) @ a)
        w = weights[f"{module}.weight"] + (delta.T if transposed else delta)
        found[f"{module}.weight"] = np.ascontiguousarray(w.astype(np.float32))
    return found


def merged_folder(
    source: Path, folder: Path, pairs: Pairs, scale: float, *, transposed: bool = False
) -> Path:
    """A copy of a model with an adapter merged into it."""
    shutil.copytree(source, folder)
    weights = read_safetensors(source / "model.safetensors")
    whole = merged(weights, pairs, scale, transposed=transposed)
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    return folder


def peft_folder(folder: Path, pairs: Pairs, **config: Any) -> Path:
    """An adapter as PEFT saves it."""
    folder.mkdir()
    rank = next(iter(pairs.values()))[0].shape[0]
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, "bias": "none"} | config
    (folder / "adapter_config.json").write_text(json.dumps(fields), "utf-8")
    tensors = {}
    for module, (a, b) in pairs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def mlx_folder(folder: Path, pairs: Pairs, scale: float) -> Path:
    """An adapter as mlx-lm saves it."""
    folder.mkdir()
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"scale": scale}}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    tensors = {}
    for module, (a, b) in pairs.items():
        tensors[f"{module}.lora_a"] = np.ascontiguousarray(a.T)
        tensors[f"{module}.lora_b"] = np.ascontiguousarray(b.T)
    save_file(tensors, folder / "adapters.safetensors")
    return folder


def gguf_file(path: Path, pairs: Mapping[str, tuple[F32, F32]], **keys: Any) -> Path:
    """An adapter as llama.cpp's converter writes it; the names of the tensors are GGUF's."""
    metadata = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": ALPHA,
    }
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"{name}.weight.lora_a"], tensors[f"{name}.weight.lora_b"] = a, b
    return write_gguf(path, metadata | keys, tensors)


def saved_by_peft(
    base: Path, folder: Path, ids: list[int], config: Mapping[str, Any]
) -> tuple[F32, Path]:
    """A random adapter that PEFT makes and saves, and the logits that it gives for these tokens."""
    import peft
    import torch
    import transformers

    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    wanted = {"lora_alpha": 2.0 * config["r"], **config}
    tuned = peft.get_peft_model(model, peft.LoraConfig(**wanted)).eval()
    with torch.no_grad():
        for name, values in tuned.named_parameters():
            if not values.requires_grad or ".lora_A." in name:
                continue
            if name.endswith("magnitude_vector.default.weight"):
                values.mul_(1 + 0.3 * torch.rand_like(values))
            elif ".lora_B." in name:
                values.copy_(0.05 * torch.randn_like(values))
            else:  # biases, and whole modules
                values.add_(0.05 * torch.randn_like(values))
        logits = tuned(torch.tensor([ids])).logits[0]
    tuned.save_pretrained(folder)
    return logits.float().numpy(), folder


def answer_with(
    base: Path,
    adapter: Path | None,
    ids: list[int],
    format: str | None = "f32",
    activations: str = "mixed",
) -> F32:
    """Logits of a model with an adapter."""
    with open_checkpoint(base) as checkpoint:
        loaded = load_weights(checkpoint, threads=1, format=format, memory="small")
    options = LoadOptions(n_threads=2, kv_dtype="f32", activations=activations)
    plan = record_plan(loaded, options, adapters=True)
    native = None if adapter is None else fit(plan, loaded, read_lora(adapter)).native
    plan.native.run(
        np.array(ids, np.int32),
        [(plan.cache.sequence(), len(ids))],
        np.arange(len(ids), dtype=np.int32),
        adapters=[native],
    )
    found: F32 = plan.logits()[:, : plan.vocabulary]
    return found


def model_of(source: Path, folder: Path, tokens_of: Path) -> Path:
    """A golden with the tokenizer of another model, which a folder must have."""
    shutil.copytree(source, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokens_of / name, folder / name)
    return folder
