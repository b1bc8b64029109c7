"""Which layers see only the latest positions, in GGUF's words, and the ropes of the two kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slmq.errors import CheckpointError
from slmq.models.parts.rope import BASES
from slmq.models.parts.values import config_number, config_value


def windows_from_gguf(metadata: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Windows of GGUF metadata as a Hugging Face configuration; nothing where none are said."""
    found: dict[str, Any] = {}
    if metadata.get(f"{architecture}.attention.sliding_window"):  # 0 is none
        found["sliding_window"] = metadata[f"{architecture}.attention.sliding_window"]
    key = f"{architecture}.attention.sliding_window_pattern"
    if isinstance(metadata.get(key), int):
        found["sliding_window_pattern"] = metadata[key]
    elif pattern := config_value(metadata, key, list, []):  # true where a layer has a window
        kinds = ["sliding_attention" if slides else "full_attention" for slides in pattern]
        found["layer_types"] = kinds
    return found


def ropes_by_kind(
    config: Mapping[str, Any], far_base: float, near_base: float, near_key: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rope parameters of layers without and with a window, as two configurations for `rope_of`.

    Parameters
    ----------
    config : mapping
        With ``rope_parameters`` by kind of layer, or with ``rope_theta`` and ``rope_scaling``.
    far_base, near_base : float
        ``rope_theta`` of each where nothing is said.
    near_key : str
        What the base of layers with a window is called in the older form.

    Raises
    ------
    CheckpointError
        If one of them is no object.
    """
    both = config.get("rope_parameters") or {}
    if not isinstance(both, Mapping):
        raise CheckpointError(f"expected rope_parameters to be an object, found {both!r:.80}")
    far = both.get("full_attention") or {}
    near = both.get("sliding_attention") or {}
    added = config.get("rope_scaling") or {}
    for found in (far, near, added):
        if not isinstance(found, Mapping):
            raise CheckpointError(f"expected rope parameters to be objects, found {found!r:.80}")
    # What is added to a configuration scales the rope of layers without a window, and only that.
    if "type" in added:
        added = {"rope_type": added["type"], **added}
    far = {**far, **added}
    far_base = config_number(config, "rope_theta", *BASES, far_base)
    near_base = config_number(config, near_key, *BASES, near_base)
    plain = dict(config) | {"rope_scaling": None}
    return (
        plain | {"rope_parameters": {"rope_theta": far_base, **far}},
        plain | {"rope_parameters": {"rope_theta": near_base, **near}},
    )
