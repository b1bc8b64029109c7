"""Checked values of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slmq.errors import CheckpointError

LARGEST_SIZE = 1 << 24
MOST_LAYERS = 1 << 12


def config_eps(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """What a norm adds to a variance: a number of 0 to 1; raises as `config_number`."""
    return config_number(config, key, 0.0, 1.0, default)


def config_number(
    config: Mapping[str, Any], key: str, low: float, high: float, default: float | None = None
) -> float:
    """A checked number of a configuration: `low` to `high`, both included.

    The range is far wider than any model needs, and narrow enough that whatever is computed from
    the number is finite.

    Raises
    ------
    CheckpointError
        If it is missing without a default, of another type, out of range or no number.
    """
    value: float = config_value(config, key, float, default)
    if not low <= value <= high:
        raise CheckpointError(
            f"configuration value {key!r}: expected {low:g}..{high:g}, found {value!r}"
        )
    return value


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
            f"configuration value {key!r}: expected {kind.__name__}, found {value!r:.80}"
        )
    return value


def config_layers(config: Mapping[str, Any], key: str = "num_hidden_layers") -> int:
    """How many layers a configuration has; raises as `config_count`."""
    return config_count(config, key, high=MOST_LAYERS)


def config_count(
    config: Mapping[str, Any],
    key: str,
    default: int | None = None,
    *,
    low: int = 1,
    high: int = LARGEST_SIZE,
) -> int:
    """A checked size of a configuration: an integer of `low` to `high`.

    The upper end is far beyond any model; it keeps a hostile file from asking for tables and loops
    before its tensors are compared with what it says.

    Raises
    ------
    CheckpointError
        If it is missing without a default, of another type, or out of range.
    """
    value: int = config_value(config, key, int, default)
    if not low <= value <= high:
        raise CheckpointError(
            f"configuration value {key!r}: expected {low}..{high}, found {value!r:.80}"
        )
    return value
