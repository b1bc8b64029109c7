"""Every family from folders of GPTQ, AWQ and compressed-tensors: names, fused matrices, biases.

One golden of each family gets linear layers of known codes, packed as each tool does. The model
must answer as the same model does from a folder of those values, bit by bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import read_config, rewritten
from golden import golden_names, read_golden
from int_packer import config_of, known_weight, tensors_of, write_folder
from llama_files import logits_of, relative_error
from numpy_weights import read_safetensors

from slmq.models.registry import FAMILIES

METHODS = ("gptq", "awq", "compressed-tensors")
# Embeddings and heads, which the tools leave as they are.
KEPT = ("embed_tokens", "lm_head", "wte", "wpe", "embed_in", "embed_out")


def linear_layers(folder: Path) -> dict[str, tuple[int, int]]:
    """Rows and columns of the matrices that the tools quantize, by name."""
    weights = read_safetensors(folder / "model.safetensors")
    return {
        name: w.shape
        for name, w in weights.items()
        if w.ndim == 2 and not name.endswith("bias") and name.split(".")[-2] not in KEPT
    }


def packable(family: str) -> str | None:
    """The first golden whose matrices fill words: none for weights that are stored transposed."""
    for name in golden_names(family):
        folder = read_golden(family, name).folder
        if family != "gpt2" and (folder / "model.safetensors").exists():
            sizes = linear_layers(folder).values()
            if all(n % 8 == k % 8 == 0 for n, k in sizes):
                return name
    return None


CASES = [(family, name) for family in sorted(FAMILIES) if (name := packable(family)) is not None]


def packed_folders(family: str, name: str, method: str, path: Path) -> tuple[Path, Path]:
    """A folder of packed weights, one scale a row, and one of their values."""
    source = read_golden(family, name).folder
    symmetric = method != "awq"
    plain: dict[str, Any] = read_safetensors(source / "model.safetensors")
    packed = dict(plain)
    for seed, (tensor, (n, k)) in enumerate(linear_layers(source).items()):
        x = known_weight(n, k, group_size=-1, symmetric=symmetric, seed=seed)
        options = {"symmetric": symmetric} if method == "compressed-tensors" else {}
        stem = tensor.removesuffix(".weight")
        parts = tensors_of(method, x, **options)
        # Scales of a size that suits these narrow matrices.
        grown = np.float32(64 / k**0.5)
        for part, array in parts.items():
            scales = part.endswith(("scales", "weight_scale"))
            parts[part] = (array * grown).astype(np.float16) if scales else array
        x.scales = (x.scales * grown).astype(np.float16).astype(np.float32)
        del packed[tensor]
        packed |= {f"{stem}.{part}": array for part, array in parts.items()}
        plain[tensor] = x.values()
    config = read_config(source)
    quantization = config_of(method, group_size=-1, symmetric=symmetric)
    write_folder(path / "packed", config | {"quantization_config": quantization}, packed)
    values = rewritten(source, path / "plain", lambda c: c, lambda w: w.update(plain))
    return path / "packed", values


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "name"), CASES)
def test_packed_weights_are_their_values(
    family: str, name: str, method: str, tmp_path: Path
) -> None:
    tokens = read_golden(family, name).tokens[0]
    packed, plain = packed_folders(family, name, method, tmp_path)
    want = logits_of(plain, tokens)
    assert np.array_equal(logits_of(packed, tokens), want)
    assert want.std() > 0.1
    kept = logits_of(packed, tokens, format=None, activations="exact")
    # Activations of 16 bits, and float16 for what no format of fewer bits holds.
    assert relative_error(kept, want) < 1e-2


def test_every_family_is_here() -> None:
    assert set(FAMILIES.values()) - {family for family, _ in CASES} <= {"gpt2"}
