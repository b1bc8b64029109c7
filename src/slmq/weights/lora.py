"""Adapters as files: folders of PEFT and mlx-lm, and GGUF, all read to the same pairs of matrices.

Low-rank adaptation adds ``scale * B @ A`` to a weight (Hu et al., "LoRA", 2021). PEFT scales by
``alpha / r``, rank-stabilized LoRA by ``alpha / sqrt(r)`` (Kalajdzievski, 2023), mlx-lm by a number
of its own. DoRA (Liu et al., 2024) gives the rows of the sum lengths of their own. What an adapter
asks for and is not done is an error that names it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
HEAD = "lm_head"
TENSOR = re.compile(
    r"(.+)\.lora_(A|B|magnitude_vector)(?:\.(?!weight$|bias$)[\w\-]+)?(?:\.(weight|bias))?"
)
# Expressions that are matched in a time that is known: no group is repeated, and at most two other
# things are. PEFT's are names of modules, as a rule.
REPEATED = re.compile(r"(?<!\\)(?:[*+?]|\{[\d,]*\})\??")
MOST_REPEATED, LONGEST_PATTERN = 2, 200
# Starting points that change the base: what is stored fits no other.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "eva_base", "mica")
# Fields of PEFT that change what is computed. Others only say how it was trained.
REFUSED = (
    "target_parameters", "layer_replication", "alora_invocation_tokens", "use_qalora",
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
    lengths : float32[n], optional
        Of the rows of the sum of the weight and this (DoRA).
    bias : float32[n], optional
        Added to the layer's.
    """

    a: F32
    b: F32
    lengths: F32 | None = None
    bias: F32 | None = None


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
    replaced : dict of str to float32
        Biases, and heads, that take the place of the model's, by the names of their tensors.
    architecture : str, optional
        What a GGUF file says that its base is.
    """

    path: Path
    layout: Layout
    pairs: dict[str, LowRank]
    base: str | None
    replaced: dict[str, F32]
    architecture: str | None = None


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
            said = stored.metadata.get("general.architecture")
            if not isinstance(said, str):
                raise CheckpointError(
                    f"general.architecture: expected a name, got {said!r:.80}", file=path
                )
            found = _finish(path, stored.layout, _gguf_pairs(stored), {}, None)
            return replace(found, architecture=said)
    config_path = path / CONFIG
    if not path.is_dir() or not config_path.exists():
        raise CheckpointError(
            f"expected an adapter: a folder with {CONFIG}, or a GGUF file", file=path
        )
    config = read_json_object(config_path, MAX_CONFIG_BYTES, allow_duplicates=True)
    mlx = "fine_tune_type" in config
    with open_single(path / (MLX if mlx else PEFT), config) as stored:
        base = config.get("base_model_name_or_path")
        base = base if isinstance(base, str) else None
        if mlx:
            return _finish(path, stored.layout, _mlx_pairs(config, stored), {}, base)
        _refuse(config, path)
        pairs, replaced = _peft_pairs(config, stored)
        return _finish(path, stored.layout, pairs, replaced, base)


def _finish(
    path: Path,
    layout: Layout,
    pairs: dict[str, LowRank],
    replaced: dict[str, F32],
    base: str | None,
) -> Lora:
    if not pairs:
        raise CheckpointError("the adapter holds no pair of matrices", file=path)
    return Lora(path, layout, pairs, base, replaced)


# ------------------------------------------------------------------ PEFT


def _peft_pairs(
    config: Mapping[str, Any], stored: Checkpoint
) -> tuple[dict[str, LowRank], dict[str, F32]]:
    """Pairs of matrices, and what takes the place of the base's, by names."""
    parts: dict[str, dict[str, str]] = {}
    replaced = {}
    for name in stored.tensors:
        found = TENSOR.fullmatch(name)
        if found is None:
            own = name.removeprefix(PREFIX).replace(".base_layer.", ".")
            _check_replaced(config, stored.path, own)
            replaced[own] = _floats(stored, name)
            continue
        part = found[2] + (".bias" if found[3] == "bias" else "")
        parts.setdefault(found[1].removeprefix(PREFIX), {})[part] = name
    pairs = {}
    for module, names in parts.items():
        a, b = _both(stored, module, names.pop("A", None), names.pop("B", None))
        scale = _peft_scale(config, module, a.shape[0])
        lengths, bias = names.pop("magnitude_vector", None), names.pop("B.bias", None)
        if names:
            raise UnsupportedModelError(f"{stored.path}: {min(names.values())!r:.120}: not known")
        pairs[module] = _pair(
            stored,
            module,
            a,
            b,
            scale,
            lengths=None if lengths is None else _floats(stored, lengths),
            bias=None if bias is None else _floats(stored, bias) * np.float32(scale),
        )
    return pairs, replaced


def _check_replaced(config: Mapping[str, Any], path: Path, name: str) -> None:
    """Whether a tensor that belongs to no pair is one that is understood."""
    module, _, kind = name.rpartition(".")
    saved = config.get("modules_to_save") or []
    if kind == "bias" and config.get("bias", "none") in ("all", "lora_only"):
        return
    if kind in ("weight", "bias") and isinstance(saved, list) and HEAD in saved and module == HEAD:
        return
    raise UnsupportedModelError(
        f"{path}: tensor {name!r:.120}: expected pairs of lora_A and lora_B, biases and {HEAD}; "
        f"embeddings and other whole modules (modules_to_save) of an adapter are not supported"
    )


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
    """The value of the first pattern that fits the name of a module, or its end behind a dot."""
    patterns = config.get(field) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{CONFIG}: {field}: expected an object, got {patterns!r:.80}")
    for pattern, value in patterns.items():
        if _expression(field, pattern).fullmatch(module):
            return value
    return default


def _expression(field: str, pattern: str) -> re.Pattern[str]:
    repeated = REPEATED.findall(pattern)
    if (
        len(repeated) > MOST_REPEATED
        or len(pattern) > LONGEST_PATTERN
        or re.search(r"\)(?:[*+?{])|\(\?|\\\d", pattern)
    ):
        raise UnsupportedModelError(
            f"{CONFIG}: {field}: expected names of modules or simple expressions, with at most "
            f"{MOST_REPEATED} repetitions, none of a group; got {pattern!r:.80}"
        )
    try:
        return re.compile(rf"(?:.*\.)?(?:{pattern})")
    except re.error as error:
        raise CheckpointError(
            f"{CONFIG}: {field}: {pattern!r:.80} is no expression: {error}"
        ) from None


# ------------------------------------------------------------------ mlx-lm and GGUF


def _mlx_pairs(config: Mapping[str, Any], stored: Checkpoint) -> dict[str, LowRank]:
    kind = config["fine_tune_type"]
    if kind not in ("lora", "dora"):
        raise UnsupportedModelError(
            f"{stored.path}: fine_tune_type: expected 'lora' or 'dora', got {kind!r:.40}"
        )
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise CheckpointError("expected an object under lora_parameters", file=stored.path)
    scale = _number("scale", parameters.get("scale"))
    pairs = {}
    for module in _modules(stored):
        a, b = _both(stored, module, f"{module}.lora_a", f"{module}.lora_b")
        lengths = _floats(stored, f"{module}.m") if f"{module}.m" in stored.tensors else None
        pairs[module] = _pair(stored, module, a.T, b.T, scale, lengths=lengths)
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
        if half not in ("lora_a", "lora_b", "m"):
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
        if len(stored.tensors[name].shape) == 3 and "exps" in module:  # of all experts, in GGUF
            raise UnsupportedModelError(f"{stored.path}: {module}: experts take no adapters")
        if len(stored.tensors[name].shape) != 2:
            shape = list(stored.tensors[name].shape)
            raise CheckpointError(
                f"expected a matrix, got the shape {shape}", file=stored.path, tensor=name
            )
    assert a is not None
    assert b is not None
    return _floats(stored, a), _floats(stored, b)


def _pair(
    stored: Checkpoint,
    module: str,
    a: F32,
    b: F32,
    scale: float,
    *,
    lengths: F32 | None = None,
    bias: F32 | None = None,
) -> LowRank:
    rank = a.shape[0]
    for what, values in (("magnitudes", lengths), ("bias", bias)):
        if values is not None and values.shape != b.shape[:1]:
            raise CheckpointError(
                f"{module}: expected {what} of {b.shape[0]} values, got {list(values.shape)}",
                file=stored.path,
            )
    if b.shape[1] != rank or not 1 <= rank <= MOST_RANK:
        raise CheckpointError(
            f"{module}: expected A [rank, inputs] and B [outputs, rank] with a rank of "
            f"1..{MOST_RANK}, got {list(a.shape)} and {list(b.shape)}",
            file=stored.path,
        )
    up = np.ascontiguousarray(b * np.float32(scale))
    return LowRank(np.ascontiguousarray(a), up, lengths, bias)


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
    if not np.isfinite(values).all():
        raise CheckpointError(
            "expected finite weights, found NaN or infinity", file=stored.path, tensor=name
        )
    return values.reshape(info.shape)
