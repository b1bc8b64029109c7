"""Every number of every family's configuration has a range; whatever passes computes finite values.

The numbers are those of the goldens' configurations and of every rope scaling, replaced one by one.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import GOLDENS

import slmq
from slmq.errors import CheckpointError, Error
from slmq.models.parts.headless import Headless, writes_nothing
from slmq.models.parts.rope import Rope, rope_of
from slmq.models.registry import ENCODERS, FAMILIES

EXTREMES = (
    *(5e-324, -5e-324, 1e308, -1e308, 1.7976931348623157e308, 1e-30, 1e30, 1e-3, 1e6, 1e12),
    *(0, -1, 1, 2, 1 << 24, (1 << 24) + 1, 1 << 31, 1 << 63, 10**300, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, 1.0, math.inf, -math.inf, math.nan, True, None, "1", [], {}),
)
SCALINGS: tuple[dict[str, Any], ...] = (
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {
        **{"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0},
        **{"mscale": 1.0, "mscale_all_dim": 0.7, "truncate": True},
    },
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.2},
    {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 4.0},
    {
        **{"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
        **{"attention_factor": 1.2},
    },
)
ROPE = {"rope_theta": 10000.0, "max_position_embeddings": 64, "partial_rotary_factor": 1.0}
OUTSIDE = (5e-324, 1e308, math.inf, math.nan, -1.0)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where numbers stand in a configuration."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for i in {0, len(value) - 1} if value else ():
            yield from places(value[i], (*path, i))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def changed(config: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    place: Any = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return config


def check_finite(config: Any) -> None:
    """Everything that a checked configuration holds is finite in float32, and so are its ropes."""
    for field in fields(config) if is_dataclass(config) else ():
        value = getattr(config, field.name)
        if isinstance(value, Rope):
            check_rope(value)
        elif isinstance(value, float):
            assert np.isfinite(np.float32(value)), (field.name, value)


def check_rope(rope: Rope) -> None:
    for n_ctx in (64, 1 << 24):
        found = rope.at(n_ctx)
        assert np.isfinite(found.frequencies).all()
        assert np.isfinite(np.float32(found.factor))


def goldens() -> list[Path]:
    """All but tables, whose sizes are those of their tensors."""
    found = (path.parent for path in GOLDENS.glob("*/*/config.json"))
    return sorted(folder for folder in found if folder.parent.name != "tables")


@pytest.mark.parametrize("folder", goldens(), ids=lambda f: f"{f.parent.name}-{f.name}")
@pytest.mark.filterwarnings("error")
def test_every_number_of_a_configuration(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    family: Any = importlib.import_module(
        f"slmq.models.{(FAMILIES | ENCODERS)[config['model_type']]}"
    )
    if writes_nothing(config):
        family = Headless(family)
    check_finite(family.Config.from_dict(config))
    passed, messages = 0, []
    for path in places(config):
        for value in EXTREMES:
            try:
                found = family.Config.from_dict(changed(config, path, value))
            except Error as error:
                messages.append(str(error))
            else:
                check_finite(found)
                passed += 1
    assert passed
    assert max(map(len, messages)) < 500


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_type"])
@pytest.mark.filterwarnings("error")
def test_every_number_of_a_rope(scaling: dict[str, Any]) -> None:
    config = ROPE | {"rope_scaling": {"original_max_position_embeddings": 32, **scaling}}
    check_rope(rope_of(config, 16))
    messages = []
    for path in places(config):
        field = next(key for key in reversed(path) if isinstance(key, str))
        for value in EXTREMES:
            try:
                check_rope(rope_of(changed(config, path, value), 16))
            except CheckpointError as error:
                messages.append((field, value, str(error)))
    assert max(len(message) for *_, message in messages) < 500
    for field, value, message in messages:
        # Those with a range name the field, the value and the range.
        if isinstance(value, float) and value in OUTSIDE and "position" not in field:
            assert all(part in message for part in (field, "..", repr(value))), message


def test_two_numbers_at_once() -> None:
    """The ends of the ranges together: nothing that passes overflows."""
    ends = (1e-3, 1e6)
    for scaling in SCALINGS:
        for base in (1.0, 1e12):
            for positions in (1, 1 << 24):
                for end in ends:
                    changes = {
                        key: [end] * 8 if isinstance(value, list) else end
                        for key, value in scaling.items()
                        if key not in ("rope_type", "truncate")
                    }
                    original = {"original_max_position_embeddings": 1 << 24 if end < 1 else 1}
                    config = {
                        "rope_theta": base,
                        "max_position_embeddings": positions,
                        "rope_scaling": scaling | changes | original,
                    }
                    with suppress(CheckpointError):  # high_freq_factor > low_freq_factor
                        check_rope(rope_of(config, 16))


@pytest.mark.parametrize("value", [5e-324, 1e308])
@pytest.mark.parametrize(
    ("family", "field"),
    [
        ("llama/odd_sizes", "rope_theta"),
        ("gpt_neox/parallel", "rotary_emb_base"),
        ("gemma3_text/five_windows_for_one_full", "rope_local_base_freq"),
        ("llama/rope_linear", "factor"),
    ],
)
def test_the_error_names_file_field_value_and_range(
    family: str, field: str, value: float, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (GOLDENS / family).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    if field == "factor":
        place = config.get("rope_parameters") or config["rope_scaling"]
        place["factor"] = value
    else:
        config.pop("rope_parameters", None)
        config[field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        slmq.load(folder)
    assert caught.value.file == str(folder / "config.json")
    assert f"{field!r}: expected" in caught.value.message
    assert f"found {value!r}" in caught.value.message
