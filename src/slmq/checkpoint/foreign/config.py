"""How a folder of safetensors says that its weights are quantized, checked.

``config.json`` carries a ``quantization_config``; older files of AutoGPTQ and AutoAWQ say the same
in ``quantize_config.json`` and ``quant_config.json`` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq.checkpoint.jsonfile import read_json_object
from slmq.errors import CheckpointError

__all__ = [
    "AWQ",
    "BITNET",
    "COMPRESSED",
    "GPTQ",
    "QuantConfig",
    "parse_quant_config",
    "read_quant_config",
]

GPTQ, AWQ, COMPRESSED, BITNET = "gptq", "awq", "compressed-tensors", "bitnet"
METHODS = (GPTQ, AWQ, COMPRESSED, BITNET)
OLD_FILES = {"quantize_config.json": GPTQ, "quant_config.json": AWQ}
MAX_BYTES = 4 << 20
WHOLE_ROWS = -1


@dataclass(frozen=True)
class QuantConfig:
    """What the quantizer wrote about itself.

    Attributes
    ----------
    method : {"gptq", "awq", "compressed-tensors", "bitnet"}
    bits : tuple of int
        4, 8 or both: what a weight may have; 2 in BitNet's.
    group_sizes : tuple of int
        Columns that share a scale, -1 for whole rows: what a weight may have. Empty: any.
    zero_offset : int
        Added to stored zero points: 1 in GPTQ's first format, which stores them minus one.
    file : Path
        Where this was read.
    divides : bool
        Weights are codes divided by their scale, not multiplied.
    """

    method: str
    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    zero_offset: int
    file: Path
    divides: bool = False


def read_quant_config(folder: Path, config: Mapping[str, Any]) -> QuantConfig | None:
    """The quantization of a folder; None if nothing speaks of one.

    Parameters
    ----------
    config : mapping
        The folder's parsed ``config.json``.

    Raises
    ------
    CheckpointError
        It is malformed, or of a method, format or width that slmq does not read.
    """
    found = config.get("quantization_config")
    mlx = _mlx(found) or _mlx(config.get("quantization"))
    if mlx:
        raise CheckpointError(mlx, file=folder / "config.json")
    if found is not None:
        return parse_quant_config(found, folder / "config.json")
    for name, method in OLD_FILES.items():
        if (folder / name).exists():
            old = read_json_object(folder / name, MAX_BYTES, allow_duplicates=True)
            return parse_quant_config({"quant_method": method} | old, folder / name)
    return None


def _mlx(found: Any) -> str | None:
    """What to say of the quantization that mlx-lm writes, None for any other.

    It names no method; other keys of it are names of layers with settings of their own.
    """
    if not isinstance(found, dict) or "quant_method" in found:
        return None
    bits, group = found.get("bits"), found.get("group_size")
    if type(bits) is not int or type(group) is not int:
        return None
    return (
        f"quantized by MLX ({bits} bits, groups of {group}), which slmq does not read; take the "
        f"model that it was made from, or a GGUF file of it"
    )


def parse_quant_config(found: Any, file: Path) -> QuantConfig:
    """Check one ``quantization_config``. Raises as `read_quant_config`."""
    if not isinstance(found, dict):
        raise CheckpointError(
            f"quantization_config: expected an object, got a {type(found).__name__}", file=file
        )
    method = found.get("quant_method")
    if method == GPTQ:
        return _gptq(found, file)
    if method == AWQ:
        return _awq(found, file)
    if method == COMPRESSED:
        return _compressed(found, file)
    if method == BITNET:
        return _bitnet(found, file)
    raise _unsupported("quant_method", method, (*METHODS, "mxfp4"), file)


def _gptq(found: dict[str, Any], file: Path) -> QuantConfig:
    layout = found.get("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise _unsupported("checkpoint_format", layout, ("gptq", "gptq_v2"), file)
    if found.get("is_marlin_format"):
        raise _unsupported("is_marlin_format", True, (False,), file)
    if found.get("pack_dtype", "int32") != "int32":
        raise _unsupported("pack_dtype", found["pack_dtype"], ("int32",), file)
    # With "dynamic", modules may have a width and a group size of their own: the shapes tell.
    mixed = bool(found.get("dynamic"))
    bits = _one_of(found, "bits", (4, 8), file)
    return QuantConfig(
        method=GPTQ,
        bits=(4, 8) if mixed else (bits,),
        group_sizes=() if mixed else (_group_size(found, "group_size", file),),
        zero_offset=1 if layout == "gptq" else 0,
        file=file,
    )


def _awq(found: dict[str, Any], file: Path) -> QuantConfig:
    version = found.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise _unsupported("version", version, ("gemm",), file)
    bits = _one_of(found, "w_bit" if "w_bit" in found else "bits", (4,), file)
    group_size = _group_size(
        found, "q_group_size" if "q_group_size" in found else "group_size", file
    )
    return QuantConfig(AWQ, (bits,), (group_size,), 0, file)


def _compressed(found: dict[str, Any], file: Path) -> QuantConfig:
    groups = found.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError("config_groups: expected a non-empty object", file=file)
    for key in ("sparsity_config", "transform_config"):
        part = found.get(key) or {}
        if not isinstance(part, dict) or (part and part.get("format") != "dense"):
            raise CheckpointError(f"{key}: not supported, expected none", file=file)
    bits: list[int] = []
    sizes: list[int] = []
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise CheckpointError(f"config_groups {name!r}: expected weights", file=file)
        for layout in (found.get("format"), group.get("format")):
            if layout not in (None, "mixed-precision", "pack-quantized"):
                raise _unsupported("format", layout, ("pack-quantized",), file)
        if weights.get("type", "int") != "int":
            raise _unsupported("weights type", weights["type"], ("int",), file)
        bits.append(_one_of(weights, "num_bits", (4, 8), file))
        strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "channel")
        if strategy not in ("group", "channel"):
            raise _unsupported("strategy", strategy, ("group", "channel"), file)
        grouped = strategy == "group"
        sizes.append(_group_size(weights, "group_size", file) if grouped else WHOLE_ROWS)
    return QuantConfig(COMPRESSED, tuple(bits), tuple(sizes), 0, file)


def _bitnet(found: dict[str, Any], file: Path) -> QuantConfig:
    """BitNet's: two classes of layers, which differ in what their scales mean."""
    kind, mode = found.get("linear_class", "bitlinear"), found.get("quantization_mode", "offline")
    if kind not in ("bitlinear", "autobitlinear"):
        raise _unsupported("linear_class", kind, ("bitlinear", "autobitlinear"), file)
    if mode != "offline":  # floats that are rounded whenever they are used
        raise _unsupported("quantization_mode", mode, ("offline",), file)
    if found.get("use_rms_norm"):
        raise _unsupported("use_rms_norm", True, (False,), file)
    return QuantConfig(BITNET, (2,), (WHOLE_ROWS,), 0, file, divides=kind == "bitlinear")


def _one_of(found: dict[str, Any], key: str, known: tuple[int, ...], file: Path) -> int:
    value = found.get(key)
    if type(value) is not int or value not in known:
        raise _unsupported(key, value, known, file)
    return value


def _group_size(found: dict[str, Any], key: str, file: Path) -> int:
    value = found.get(key)
    if type(value) is not int or not (value == WHOLE_ROWS or 1 <= value < 1 << 31):
        raise CheckpointError(
            f"{key}: expected -1 (whole rows) or a number of columns, got {value!r:.80}", file=file
        )
    return value


def _unsupported(key: str, value: Any, known: tuple[Any, ...], file: Path) -> CheckpointError:
    names = ", ".join(map(str, known))
    return CheckpointError(
        f"quantization: {key} {value!r:.80} is not supported; supported: {names}", file=file
    )
