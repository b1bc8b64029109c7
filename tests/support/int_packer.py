"""GPTQ, AWQ and compressed-tensors weights written from known codes, one word at a time.

Written from the published packing loops of AutoGPTQ, AutoAWQ and compressed-tensors, in plain
Python integers: the inverse of the reader, and no code of it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
AWQ_COLUMNS = [0, 2, 4, 6, 1, 3, 5, 7]  # the column of nibble i of a word


@dataclass
class Known:
    """A weight by its integers: codes[n][k] and zeros[n][groups] unsigned, scales[n][groups]."""

    codes: Array
    scales: Array  # float32, values of `scale_dtype`
    zeros: Array
    group_of: Array  # of each column
    bits: int
    scale_dtype: str  # "float16", "bfloat16", "float32"

    def values(self) -> Array:
        """w = scale * (code - zero), in float32: one rounding at most."""
        n, k = self.codes.shape
        out = np.zeros((n, k), np.float32)
        for c in range(k):
            g = int(self.group_of[c])
            out[:, c] = self.scales[:, g] * (self.codes[:, c] - self.zeros[:, g]).astype(np.float32)
        return out


def known_weight(
    n: int,
    k: int,
    *,
    bits: int = 4,
    group_size: int = 128,
    symmetric: bool = False,
    desc_act: bool = False,
    scale_dtype: str = "float16",
    seed: int = 0,
) -> Known:
    """Random codes; every code and every zero point that the formats can store occurs."""
    rng = np.random.default_rng([seed, n, k])
    size = k if group_size == -1 else group_size
    groups = math.ceil(k / size)
    scales = rng.uniform(0.5, 2, (n, groups)).astype(np.float32) * np.float32(0.1 / (1 << bits))
    # The first format of GPTQ cannot store a zero of 0: its writer underflows.
    zeros = rng.integers(1, 1 << bits, (n, groups))
    if symmetric:
        zeros[:] = 1 << bits - 1
    group_of = np.arange(k) // size
    if desc_act:
        group_of = rng.permutation(group_of)
    codes = rng.integers(0, 1 << bits, (n, k))
    return Known(codes, rounded(scales, scale_dtype), zeros, group_of, bits, scale_dtype)


def rounded(values: Array, dtype: str) -> Array:
    """float32 values that a type holds (bfloat16: truncated)."""
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16 << 16).view(np.float32)
    return values.astype(dtype).astype(np.float32)


def word(fields: list[int], bits: int) -> int:
    """A signed 32-bit word of fields, the first in the lowest bits."""
    value = sum((field & (1 << bits) - 1) << bits * i for i, field in enumerate(fields))
    return value - (1 << 32) if value >= 1 << 31 else value


def along_rows(values: Array, bits: int) -> Array:
    """Words along the first axis: int32[ceil(rows / per), columns]."""
    per = 32 // bits
    return np.array(
        [
            [word(values[r : r + per, c].tolist(), bits) for c in range(values.shape[1])]
            for r in range(0, len(values), per)
        ],
        np.int32,
    )


def gptq(x: Known, version: int = 1) -> dict[str, Array]:
    """AutoGPTQ's tensors (version 1: zeros minus one), or GPTQModel's of "gptq_v2"."""
    return {
        "qweight": along_rows(x.codes.T, x.bits),
        "qzeros": along_rows(x.zeros - (version == 1), x.bits).T.copy(),
        "scales": x.scales.T.copy(),
        "g_idx": x.group_of.astype(np.int32),
    }


def awq(x: Known) -> dict[str, Array]:
    """AutoAWQ's tensors of the "gemm" version."""

    def pack(values: Array) -> Array:  # [rows, n] to words along n
        return np.array(
            [
                [
                    word([int(row[8 * j + AWQ_COLUMNS[i]]) for i in range(8)], 4)
                    for j in range(len(row) // 8)
                ]
                for row in values
            ],
            np.int32,
        )

    return {"qweight": pack(x.codes.T), "qzeros": pack(x.zeros.T), "scales": x.scales.T.copy()}


def compressed(x: Known, *, symmetric: bool, zeros: str = "packed") -> dict[str, Array]:
    """compressed-tensors' tensors; `zeros` are "packed" words or "int8"."""
    tensors = {
        "weight_packed": along_rows(x.codes.T, x.bits).T.copy(),
        "weight_scale": x.scales,
        "weight_shape": np.array(x.codes.shape, np.int64),
    }
    if not symmetric and zeros == "packed":
        tensors["weight_zero_point"] = along_rows(x.zeros, x.bits)
    elif not symmetric:
        tensors["weight_zero_point"] = (x.zeros - (1 << x.bits - 1)).astype(np.int8)
    if not np.array_equal(x.group_of, np.sort(x.group_of)):
        tensors["weight_g_idx"] = x.group_of.astype(np.int32)
    return tensors


def config_of(method: str, **values: Any) -> dict[str, Any]:
    """A `quantization_config` as each tool writes it; bits, group_size, symmetric ..."""
    bits, size = values.pop("bits", 4), values.pop("group_size", 128)
    symmetric = values.pop("symmetric", False)
    if method == "gptq":
        found = {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": symmetric,
                 "desc_act": False, "damp_percent": 0.01, "true_sequential": True}  # fmt: skip
    elif method == "awq":
        found = {"quant_method": "awq", "bits": bits, "group_size": size, "zero_point": True,
                 "version": "gemm", "modules_to_not_convert": None}  # fmt: skip
    else:
        weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False,
                   "strategy": "channel" if size == -1 else "group",
                   "group_size": None if size == -1 else size, "actorder": None}  # fmt: skip
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
        found = {"quant_method": "compressed-tensors", "format": "pack-quantized",
                 "config_groups": {"group_0": group}, "ignore": ["lm_head"],
                 "kv_cache_scheme": None, "quantization_status": "compressed"}  # fmt: skip
    return found | values


def tensors_of(method: str, x: Known, *, symmetric: bool = False, **options: Any) -> dict[str, Any]:
    """The tensors of a weight in a method's layout."""
    if method == "compressed-tensors":
        return compressed(x, symmetric=symmetric, **options)
    return awq(x) if method == "awq" else gptq(x, **options)


def write_folder(
    folder: Path, config: dict[str, Any], tensors: dict[str, Array], scale_dtype: str = "float16"
) -> Path:
    """A folder with config.json and model.safetensors; scales are float32 here, stored as asked."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    header: dict[str, Any] = {}
    data = b""
    names = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
    for name, array in tensors.items():
        is_scale = name.endswith(("scales", "weight_scale"))
        dtype = names[scale_dtype] if is_scale else None
        if dtype == "BF16":
            raw = (np.ascontiguousarray(array).view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            stored = array.astype(scale_dtype) if is_scale else array
            kinds = {"<i4": "I32", "<i8": "I64", "|i1": "I8", "<f2": "F16", "<f4": "F32"}
            dtype = kinds[stored.dtype.str]
            raw = np.ascontiguousarray(stored).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder
