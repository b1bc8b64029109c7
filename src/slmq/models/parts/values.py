"""Checked values of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slmq.errors import CheckpointError


def config_eps(config: Mapping[str, Any], key: str, default: float) -> float:
    """What a norm adds to a variance: a number within 0..1."""
    eps: float = config_value(config, key, float, default)
    if not 0 <= eps < 1:
        raise CheckpointError(f"expected {key} within 0..1, found {eps}")
    return eps


LARGEST_SIZE = 1 << 24


def config_value(config: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """A checked value of a configuration.

    Raises
    ------
    CheckpointError
        If it is missing without a default, or of another type.
    """
    value = config.get(key)
    if value is None:
        value = default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1000 else value
    wrong_bool = isinstance(value, bool) and kind is not bool
    if not isinstance(value, kind) or wrong_bool:
        raise CheckpointError(
            f"configuration value {key!r}: expected {kind.__name__}, found {value!r}"
        )
    return value


def config_count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A checked size of a configuration: an integer of 1 to 2^24.

    The upper end is far beyond any model; it keeps a hostile file from asking for tables and loops
    before its tensors are compared with what it says.

    Raises
    ------
    CheckpointError
        If it is missing without a default, of another type, or out of range.
    """
    value: int = config_value(config, key, int, default)
    if not 1 <= value <= LARGEST_SIZE:
        raise CheckpointError(
            f"configuration value {key!r}: expected 1..{LARGEST_SIZE}, found {value}"
        )
    return value
