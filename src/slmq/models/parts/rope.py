"""Rope frequencies from a configuration, with their scalings.

They depend on the configuration and on `n_ctx`, the most positions that a model is loaded for, and
on nothing else: a text's length would give one prefix two answers. transformers switches by the
length of the text for dynamic and longrope, so a text reads there as it does here when `n_ctx` lies
on the same side of the original context (longrope) or is the text's length (dynamic).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.machine.exact import exact_log, exact_pow
from slmq.models.parts.values import config_count, config_number, config_value

F32 = npt.NDArray[np.float32]

log = logging.getLogger("slmq")

LARGEST_HEAD = 65536
TWO_PI = 6.283185307179586
PLAIN_BASE = 10000.0
# What models have: 1e4 to 1e7 as base, 1 to 64 as factor, 0.5 to 1.5 to scale attention.
BASES = (1.0, 1e12)
FACTORS = (1e-3, 1e6)
SHARES = (1e-6, 1.0)  # of a head's channels
STORED_DIVISORS = (1e-3, 1e30)  # a divisor of 1e30 switches a channel off
LONGROPE = ("longrope", "su")
MULTIPLIER = "attention_multiplier"  # our word for llama.cpp's attn_factor, which any kind may have
PROPORTIONAL = "proportional"
KINDS = ("default", "linear", "dynamic", "llama3", "yarn", PROPORTIONAL, *LONGROPE)


class RopeFrequencies(NamedTuple):
    """Rotate-half rope: angle i of position p is p * frequencies[i].

    Attributes
    ----------
    frequencies : float32[rotary / 2]
    factor : float
        Multiplies sines and cosines.
    """

    frequencies: F32
    factor: float = 1.0


@dataclass(frozen=True)
class Rope:
    """What a configuration says of its rope; `at` computes the frequencies.

    Attributes
    ----------
    rotary : int
        Channels of a head that turn, the first ones.
    base : float
    kind : str
        One of `KINDS`.
    scaling : mapping
        The kind's own values.
    positions, original : int
        Most positions, now and before the context was extended.
    divisors : tuple of float32[rotary / 2], optional
        What a GGUF file stores instead of a scaling: divisors up to and beyond `original`.
    """

    rotary: int
    base: float
    kind: str
    scaling: Mapping[str, Any]
    positions: int
    original: int
    divisors: tuple[F32, F32] | None = None

    def at(self, n_ctx: int) -> RopeFrequencies:
        """Frequencies of a model that is loaded for `n_ctx` positions."""
        plain = _plain(self.base, self.rotary)
        scaled, factor = plain, 1.0
        if self.kind == "linear":
            divisor = _factor(self.scaling, "factor")
            scaled = [f / divisor for f in plain]
        elif self.kind == "dynamic":
            scaled = _dynamic(self, n_ctx)
        elif self.kind == "llama3":
            scaled = _llama3(plain, self.scaling, self.original)
        elif self.kind == "yarn":
            scaled, factor = _yarn(self, plain)
        elif self.kind in LONGROPE:
            scaled, factor = _longrope(self, plain, n_ctx)
        elif self.kind == PROPORTIONAL:
            scaled = _proportional(self, plain)
        factor *= _factor(self.scaling, MULTIPLIER, 1.0)
        frequencies = np.array(scaled, dtype=np.float32)
        if self.divisors is not None:
            divisors = self.divisors[n_ctx > self.original]
            still = divisors >= np.float32(STORED_DIVISORS[1])
            frequencies = np.where(still, np.float32(0), frequencies / divisors)
        return RopeFrequencies(frequencies, factor)

    def divided(self, near: F32, far: F32) -> Rope:
        """The same with a file's divisors, up to and beyond the original context.

        Raises
        ------
        CheckpointError
            If one is out of range.
        """
        low, high = STORED_DIVISORS
        for divisors in (near, far):
            if not (low <= divisors.min() and divisors.max() <= high):
                raise CheckpointError(
                    f"expected rope divisors of {low:g}..{high:g}, found {divisors.min()} to "
                    f"{divisors.max()}"
                )
        return replace(self, divisors=(near, far))


def rope_of(config: Mapping[str, Any], head_dim: int) -> Rope:
    """The rope that a Hugging Face configuration asks for.

    Reads `rope_scaling`, which users add as a model's card says, then `rope_parameters` (of
    transformers 5), and takes what they lack, `rope_theta` and `partial_rotary_factor`, from the
    configuration around them: see `merged_rope`. Types: default, linear (Chen et al., 2023),
    dynamic (NTK-aware, by u/emozilla), llama3 (Llama 3.1), yarn (Peng et al., 2023), longrope, once
    named su (Ding et al., 2024), proportional (Gemma 4).

    Raises
    ------
    UnsupportedModelError
        For another scaling type.
    CheckpointError
        If a value is missing or makes no sense.
    """
    scaling = merged_rope(config)
    if any(key.endswith("_attention") and isinstance(scaling[key], Mapping) for key in scaling):
        raise UnsupportedModelError(
            f"rope parameters by type of layer ({', '.join(map(str, scaling)):.80}) are not "
            f"supported for this architecture"
        )
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in KINDS:
        raise UnsupportedModelError(
            f"rope scaling {kind!r:.80} is not supported; supported: {', '.join(KINDS)}"
        )
    base = _either(config, scaling, "rope_theta", *BASES, PLAIN_BASE)
    share = _either(config, scaling, "partial_rotary_factor", *SHARES, 1.0)
    rotary = int(head_dim * share)
    if kind == PROPORTIONAL:  # all turn, most of them by nothing
        rotary, scaling = head_dim, scaling | {"partial_rotary_factor": share}
    if not 2 <= rotary <= LARGEST_HEAD or rotary % 2 != 0:
        raise CheckpointError(
            f"expected an even number of rotated channels up to {LARGEST_HEAD}, found {rotary} of "
            f"a head_dim of {head_dim}"
        )
    positions = config_count(config, "max_position_embeddings", 2048)
    key = "original_max_position_embeddings"
    # Phi-3 says it outside of the scaling, and that counts.
    original = config_count(config if config.get(key) is not None else scaling, key, positions)
    rope = Rope(rotary, base, kind, scaling, positions, original)
    rope.at(positions)  # what is missing or wrong is said now
    return rope


def merged_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The one object of rope parameters that counts where a configuration has two.

    `rope_scaling` that is not empty counts before `rope_parameters`, as in transformers 5, and
    takes `rope_theta` and `partial_rotary_factor` from the configuration around it. Where only the
    other object has them, they are taken from there: they belong to the weights, not to the
    scaling (transformers takes 10000 for such a `rope_theta`; a warning says that).

    Raises
    ------
    CheckpointError
        If one of them is no object.
    """
    found = [config.get(key) or {} for key in ("rope_scaling", "rope_parameters")]
    for scaling in found:
        if not isinstance(scaling, Mapping):
            raise CheckpointError(f"expected rope scaling to be an object, found {scaling!r:.80}")
    first, second = found
    if not first:
        return dict(second)
    kept = {
        key: second[key]
        for key in ("rope_theta", "partial_rotary_factor")
        if key in second and key not in first and config.get(key) is None
    }
    if kept.get("rope_theta", PLAIN_BASE) != PLAIN_BASE:
        log.warning(
            "rope_scaling has no rope_theta; that of rope_parameters, %s, is kept (transformers "
            "takes %s there: put rope_theta into rope_scaling)",
            kept["rope_theta"],
            PLAIN_BASE,
        )
    return kept | dict(first)


def rope_from_gguf(metadata: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Rope keys of GGUF metadata as a Hugging Face configuration.

    As in llama.cpp a scaling without a type is linear, `scale_linear` is the older name of its
    factor, and a factor of 0 is none.
    """
    prefix = f"{architecture}.rope"
    scaling: dict[str, Any] = {}
    kind = config_value(metadata, f"{prefix}.scaling.type", str, "linear")
    older = config_value(metadata, f"{prefix}.scale_linear", float, 0.0)
    factor = config_value(metadata, f"{prefix}.scaling.factor", float, older)
    if kind == "linear" and not factor:
        kind = "none"
    if kind != "none":
        scaling = {"rope_type": kind} | ({"factor": factor} if factor else {})
        for theirs, ours in {
            "original_context_length": "original_max_position_embeddings",
            "yarn_beta_fast": "beta_fast",
            "yarn_beta_slow": "beta_slow",
        }.items():
            if (value := metadata.get(f"{prefix}.scaling.{theirs}")) is not None:
                scaling[ours] = value
    if (multiplier := metadata.get(f"{prefix}.scaling.attn_factor")) is not None:
        scaling[MULTIPLIER] = multiplier
    return {
        "rope_theta": config_number(metadata, f"{prefix}.freq_base", *BASES, PLAIN_BASE),
        "rope_scaling": scaling,
    }


def _either(
    config: Mapping[str, Any],
    scaling: Mapping[str, Any],
    key: str,
    low: float,
    high: float,
    default: float,
) -> float:
    """A value of the scaling, or of the configuration around it."""
    found = scaling if scaling.get(key) is not None else config
    return config_number(found, key, low, high, default)


def _factor(scaling: Mapping[str, Any], key: str, default: float | None = None) -> float:
    return config_number(scaling, key, *FACTORS, default)


def _plain(base: float, rotary: int) -> list[float]:
    return [1.0 / exact_pow(base, 2 * i / rotary) for i in range(rotary // 2)]


def _dynamic(rope: Rope, n_ctx: int) -> list[float]:
    """A larger base when the model is loaded for more positions than it was made for."""
    factor = _factor(rope.scaling, "factor")
    stretch = factor * max(n_ctx, rope.positions) / rope.positions - (factor - 1)
    if rope.rotary < 4:
        raise CheckpointError(f"expected a head_dim of 4 for dynamic rope, found {rope.rotary}")
    return _plain(rope.base * exact_pow(stretch, rope.rotary / (rope.rotary - 2)), rope.rotary)


def _llama3(plain: list[float], scaling: Mapping[str, Any], original: int) -> list[float]:
    """Low frequencies divided by the factor, high ones kept, a ramp between (Llama 3.1)."""
    factor = _factor(scaling, "factor")
    low, high = _factor(scaling, "low_freq_factor"), _factor(scaling, "high_freq_factor")
    if not high > low:
        raise CheckpointError(
            f"expected high_freq_factor > low_freq_factor, found {high} and {low}"
        )
    scaled = []
    for frequency in plain:
        turns = original * frequency / TWO_PI  # within the original context
        if turns < low:
            scaled.append(frequency / factor)
        elif turns > high:
            scaled.append(frequency)
        else:
            smooth = (turns - low) / (high - low)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return scaled


def _proportional(rope: Rope, plain: list[float]) -> list[float]:
    """The first pairs of channels turn as they would in a whole head, the others not at all."""
    turning = int(rope.scaling["partial_rotary_factor"] * rope.rotary // 2)
    divisor = _factor(rope.scaling, "factor", 1.0)
    return [f / divisor if i < turning else 0.0 for i, f in enumerate(plain)]


def _yarn(rope: Rope, plain: list[float]) -> tuple[list[float], float]:
    """Channels that turn often are kept, slow ones divided, a ramp over channels between."""
    scaling = rope.scaling
    factor = _factor(scaling, "factor", rope.positions / rope.original)
    if not rope.base > 1:
        raise CheckpointError(f"expected rope_theta > 1 for yarn, found {rope.base}")

    def channel(turns: float) -> float:
        """The pair of channels that turns so often within the original context."""
        ratio = exact_log(rope.original / (turns * TWO_PI))
        return rope.rotary * ratio / (2 * exact_log(rope.base))

    low = channel(_factor(scaling, "beta_fast", 32.0))
    high = channel(_factor(scaling, "beta_slow", 1.0))
    if config_value(scaling, "truncate", bool, True):
        low, high = float(np.floor(low)), float(np.ceil(high))
    low, high = max(low, 0.0), min(high, rope.rotary - 1.0)
    if low == high:
        high += 0.001
    scaled = []
    for i, frequency in enumerate(plain):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        scaled.append(frequency / factor * ramp + frequency * (1 - ramp))
    return scaled, _yarn_factor(scaling, factor)


def _yarn_factor(scaling: Mapping[str, Any], factor: float) -> float:
    def grown(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * exact_log(factor) + 1.0

    if scaling.get("attention_factor") is not None:
        return _factor(scaling, "attention_factor")
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return grown(_factor(scaling, "mscale")) / grown(_factor(scaling, "mscale_all_dim"))
    return grown(1.0)


def _longrope(rope: Rope, plain: list[float], n_ctx: int) -> tuple[list[float], float]:
    """A divisor for every frequency, of two lists: for short and for long contexts."""
    scaling = rope.scaling
    lists = [_divisors(scaling, key, len(plain)) for key in ("short_factor", "long_factor")]
    chosen = lists[n_ctx > rope.original]
    scaled = [frequency / divisor for frequency, divisor in zip(plain, chosen, strict=True)]
    if scaling.get("attention_factor") is not None:
        return scaled, _factor(scaling, "attention_factor")
    factor = _factor(scaling, "factor", rope.positions / rope.original)
    if factor <= 1 or rope.original < 2:
        return scaled, 1.0
    return scaled, float(np.sqrt(1 + exact_log(factor) / exact_log(float(rope.original))))


def _divisors(scaling: Mapping[str, Any], key: str, size: int) -> list[float]:
    values = config_value(scaling, key, list)
    if len(values) != size:
        raise CheckpointError(f"expected {size} values of rope scaling {key}, found {len(values)}")
    return [_factor({key: value}, key) for value in values]
