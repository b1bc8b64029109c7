"""Adapters as files: folders of PEFT and mlx-lm, and GGUF, all read to the same pairs of matrices.

Low-rank adaptation adds ``scale * B @ A`` to a weight (Hu et al., "LoRA", 2021). PEFT scales by
``alpha / r``, rank-stabilized LoRA by ``alpha / sqrt(r)`` (Kalajdzievski, 2023), mlx-lm by a number
of its own. What an adapter asks for and is not done is an error that names it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq.checkpoint import Checkpoint, Layout
from slmq.checkpoint.gguf import open_gguf, role_in
from slmq.checkpoint.jsonfile import read_json_object
from slmq.checkpoint.safetensors import MAX_CONFIG_BYTES, open_single
from slmq.errors import CheckpointError, UnsupportedModelError

__all__ = ["Lora", "LowRank", "read_lora"]

F32 = npt.NDArray[np.float32]

CONFIG = "adapter_config.json"
PEFT, MLX = "adapter_model.safetensors", "adapters.safetensors"
MOST_RANK = 256  # as the native code
PREFIX = "base_model.model."
NAMES = re.compile(r"[\w.\-]+")  # of modules; anything else in a pattern makes it an expression
# Starting points that change the base: what is stored fits no other.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "eva_base", "mica")
# Fields of PEFT that change what is computed. Others only say how it was trained.
REFUSED = (
    "use_dora", "target_parameters", "layer_replication", "alora_invocation_tokens", "use_qalora",
    "use_bdlora", "arrow_config", "trainable_token_indices", "megatron_config", "velora_config",
    "kasa_config", "monteclora_config",
)  # fmt: skip


@dataclass(frozen=True)
class LowRank:
    """What is added to one weight: ``b @ a``.

    Attributes
    ----------
    a : float32[rank, k]
    b : float32[n, rank]
        With the scale.
    """

    a: F32
    b: F32


@dataclass(frozen=True)
class Lora:
    """An adapter, read.

    Attributes
    ----------
    path : Path
    layout : Layout
        How its tensors are named and how the rows of B lie: as those of a base of its kind.
    pairs : dict of str to LowRank
        By the name of the weight, as `layout` has it, without ``.weight``.
    base : str or None
        The model that it says it was made for.
    digest : str
        Of all that counts.
    """

    path: Path
    layout: Layout
    pairs: dict[str, LowRank]
    base: str | None
    digest: str


def read_lora(path: Path) -> Lora:
    """Read an adapter: a folder of PEFT or mlx-lm, or a GGUF file.

    Raises
    ------
    CheckpointError
        If something is missing, damaged or contradicts itself.
    UnsupportedModelError
        If it asks for what is not done.
    """
    path = Path(path)
    if path.is_file():
        with open_gguf(path) as stored:
            if role_in(stored.metadata) != "adapter":
                raise CheckpointError("expected an adapter, got a model", file=path)
            return _finish(path, stored.layout, _gguf_pairs(stored), stored, None)
    config_path = path / CONFIG
    if not path.is_dir() or not config_path.exists():
        raise CheckpointError(
            f"expected an adapter: a folder with {CONFIG}, or a GGUF file", file=path
        )
    config = read_json_object(config_path, MAX_CONFIG_BYTES, allow_duplicates=True)
    mlx = "fine_tune_type" in config
    with open_single(path / (MLX if mlx else PEFT), config) as stored:
        pairs = _mlx_pairs(config, stored) if mlx else _peft_pairs(config, stored)
        base = config.get("base_model_name_or_path")
        return _finish(path, stored.layout, pairs, stored, base if isinstance(base, str) else None)


def _finish(
    path: Path, layout: Layout, pairs: dict[str, LowRank], stored: Checkpoint, base: str | None
) -> Lora:
    if not pairs:
        raise CheckpointError("the adapter holds no pair of matrices", file=path)
    digest = hashlib.sha256()
    for name in sorted(pairs):
        digest.update(f"{name}\0".encode())
        for matrix in (pairs[name].a, pairs[name].b):
            digest.update(repr(matrix.shape).encode() + matrix.tobytes())
    return Lora(path, layout, pairs, base, digest.hexdigest())


# ------------------------------------------------------------------ PEFT


def _peft_pairs(config: Mapping[str, Any], stored: Checkpoint) -> dict[str, LowRank]:
    _refuse(config, stored.path)
    halves: dict[str, dict[str, str]] = {}
    for name in stored.tensors:
        found = re.fullmatch(r"(.+)\.lora_([AB])(?:\.[\w\-]+)?\.weight", name)
        if found is None:
            raise UnsupportedModelError(
                f"{stored.path}: tensor {name!r:.120}: expected pairs of lora_A and lora_B only; "
                f"whole weights, biases, embeddings and magnitudes of an adapter are not supported"
            )
        halves.setdefault(found[1].removeprefix(PREFIX), {})[found[2]] = name
    pairs = {}
    for module, names in halves.items():
        a, b = _both(stored, module, names.get("A"), names.get("B"))
        pairs[module] = _pair(stored, module, a, b, _peft_scale(config, module, a.shape[0]))
    return pairs


def _refuse(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise UnsupportedModelError(f"{path}: peft_type: expected 'LORA', got {kind!r:.80}")
    for field in REFUSED:
        if config.get(field):
            raise UnsupportedModelError(f"{path}: {field}: adapters with it are not supported")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGED_BASE):
        raise UnsupportedModelError(
            f"{path}: init_lora_weights {start!r:.40} changes the base model; save the adapter "
            f"converted to plain LoRA (PEFT: path_initial_model_for_weight_conversion)"
        )


def _peft_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Alpha over the rank, or over its root; patterns of module names go before."""
    said = _of_module(config, "rank_pattern", module, config.get("r", rank))
    if said != rank:
        raise CheckpointError(
            f"{CONFIG}: expected the rank of {module}, {rank}, in r or rank_pattern, got {said!r}"
        )
    alpha = _of_module(config, "alpha_pattern", module, config.get("lora_alpha", rank))
    alpha = _number("lora_alpha", alpha)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(config: Mapping[str, Any], field: str, module: str, default: Any) -> Any:
    patterns = config.get(field) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{CONFIG}: {field}: expected an object, got {patterns!r:.80}")
    for pattern, value in patterns.items():
        if not NAMES.fullmatch(pattern):
            raise UnsupportedModelError(
                f"{CONFIG}: {field}: expected names of modules, got the expression {pattern!r:.80}"
            )
        if module == pattern or module.endswith(f".{pattern}"):
            return value
    return default


# ------------------------------------------------------------------ mlx-lm and GGUF


def _mlx_pairs(config: Mapping[str, Any], stored: Checkpoint) -> dict[str, LowRank]:
    kind = config["fine_tune_type"]
    if kind != "lora":
        raise UnsupportedModelError(
            f"{stored.path}: fine_tune_type: expected 'lora', got {kind!r:.40}"
        )
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise CheckpointError("expected an object under lora_parameters", file=stored.path)
    scale = _number("scale", parameters.get("scale"))
    pairs = {}
    for module in _modules(stored):
        a, b = _both(stored, module, f"{module}.lora_a", f"{module}.lora_b")
        pairs[module] = _pair(stored, module, a.T, b.T, scale)
    return pairs


def _gguf_pairs(stored: Checkpoint) -> dict[str, LowRank]:
    kind = stored.metadata.get("adapter.type")
    if kind != "lora":
        raise UnsupportedModelError(
            f"{stored.path}: adapter.type: expected 'lora', got {kind!r:.40}"
        )
    if stored.metadata.get("adapter.alora.invocation_tokens"):
        raise UnsupportedModelError(f"{stored.path}: activated LoRA is not supported")
    alpha = _number("adapter.lora.alpha", stored.metadata.get("adapter.lora.alpha"))
    pairs = {}
    for module in _modules(stored):
        a, b = _both(stored, module, f"{module}.lora_a", f"{module}.lora_b")
        pairs[module.removesuffix(".weight")] = _pair(
            stored, module, a, b, alpha / max(1, a.shape[0])
        )
    return pairs


def _modules(stored: Checkpoint) -> list[str]:
    """What ``.lora_a`` and ``.lora_b`` follow, in order."""
    found: dict[str, None] = {}
    for name in stored.tensors:
        module, _, half = name.rpartition(".")
        if half not in ("lora_a", "lora_b"):
            raise UnsupportedModelError(
                f"{stored.path}: tensor {name!r:.120}: expected pairs of lora_a and lora_b only"
            )
        found[module] = None
    return list(found)


# ------------------------------------------------------------------ values


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e6:
        raise CheckpointError(f"{name}: expected a number within 1e6, got {value!r:.80}")
    return float(value)


def _both(stored: Checkpoint, module: str, a: str | None, b: str | None) -> tuple[F32, F32]:
    for half, name in (("A", a), ("B", b)):
        if name is None or name not in stored.tensors:
            raise CheckpointError(f"{module}: its {half} is missing", file=stored.path)
    assert a is not None
    assert b is not None
    return _floats(stored, a), _floats(stored, b)


def _pair(stored: Checkpoint, module: str, a: F32, b: F32, scale: float) -> LowRank:
    rank = a.shape[0]
    if b.shape[1] != rank or not 1 <= rank <= MOST_RANK:
        raise CheckpointError(
            f"{module}: expected A [rank, inputs] and B [outputs, rank] with a rank of "
            f"1..{MOST_RANK}, got {list(a.shape)} and {list(b.shape)}",
            file=stored.path,
        )
    return LowRank(np.ascontiguousarray(a), np.ascontiguousarray(b * np.float32(scale)))


def _floats(stored: Checkpoint, name: str) -> F32:
    info = stored.tensors[name]
    raw = stored.read(name)
    if info.dtype == "bf16":
        values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    elif info.dtype in ("f16", "f32"):
        values = raw.view(f"<{info.dtype[0]}{int(info.dtype[1:]) // 8}").astype(np.float32)
    else:
        raise CheckpointError(
            f"expected f32, f16 or bf16, got {info.dtype}", file=stored.path, tensor=name
        )
    if len(info.shape) != 2:
        raise CheckpointError(
            f"expected a matrix, got the shape {list(info.shape)}", file=stored.path, tensor=name
        )
    if not np.isfinite(values).all():
        raise CheckpointError(
            "expected finite weights, found NaN or infinity", file=stored.path, tensor=name
        )
    return values.reshape(info.shape)
