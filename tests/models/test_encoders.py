"""Every encoder family against transformers: hidden states, pooled vectors and heads.

The names of the cases say what a configuration switches on; tests/support/encoder_cases.py has
them.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_golden import EncoderGolden, encoder_names, open_runner, read_encoder
from llama_files import relative_error

import slmq
from slmq.conversion.convert import convert
from slmq.models.mpnet import buckets_of
from slmq.models.registry import ENCODERS

ISAS = [name for name, table in slmq.isa.items() if table is not None]
# Tables of vectors have tests of their own; decoders that embed belong here.
FAMILIES = [*sorted({*ENCODERS.values()} - {"static"}), "headless"]
CASES = [(family, name) for family in FAMILIES for name in encoder_names(family)]
cases = pytest.mark.parametrize(("family", "name"), CASES)


def everything(golden: EncoderGolden, path: Path | None = None, **options: Any) -> list[Any]:
    """States, heads and mean vectors of both texts."""
    runner = open_runner(golden.folder if path is None else path, **options)
    heads = list(runner.heads(golden.texts)) if golden.heads else []
    return [*runner.states(golden.texts), *heads, *runner.pooled(golden.texts)]


def wanted(golden: EncoderGolden) -> list[Any]:
    return [*golden.states, *golden.heads, *(states.mean(axis=0) for states in golden.states)]


def test_every_family_has_cases() -> None:
    counts = {family: len(encoder_names(family)) for family in FAMILIES}
    assert min(counts.values()) >= 3, counts


@cases
def test_float32_agrees_with_transformers(family: str, name: str) -> None:
    golden = read_encoder(family, name)
    for got, want in zip(everything(golden, format="f32"), wanted(golden), strict=True):
        assert got.shape == want.shape
        assert relative_error(got, want) < 1e-5


@cases
def test_int8_is_near(family: str, name: str) -> None:
    """Random weights and sizes below a group are the worst case; real models are far nearer."""
    golden = read_encoder(family, name)
    runner = open_runner(golden.folder)
    wanted = "q8g32s" if family == "headless" else "q8rs"  # decoders have outliers
    assert runner.body.weights.layers[0].q.matrix.format == wanted
    for got, states in zip(runner.pooled(golden.texts), golden.states, strict=True):
        want = states.mean(axis=0)
        assert got @ want / np.linalg.norm(got) / np.linalg.norm(want) > 0.998


@pytest.mark.parametrize("format", ["f32", None])
@cases
def test_the_same_bits_everywhere(family: str, name: str, format: Any) -> None:
    """On every instruction set and thread count, in any order, alone and among others."""
    golden = read_encoder(family, name)
    want = everything(golden, format=format, isa="scalar", n_threads=1)
    for isa in ISAS:
        for threads in (1, 2):
            got = everything(golden, format=format, isa=isa, n_threads=threads)
            assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True)), isa
    runner = open_runner(golden.folder, format=format)
    one, other = golden.texts
    many = list(runner.pooled([other, one, other, other, one] * 9))
    assert all(np.array_equal(v, want[-2]) for v in many[1::5])
    assert all(np.array_equal(v, want[-1]) for v in many[::5])
    assert np.array_equal(next(runner.states([other])), want[1])
    if golden.heads:
        heads = list(runner.heads([other, one, other] * 5))
        assert all(np.array_equal(v, want[2]) for v in heads[1::3])
        assert all(np.array_equal(v, want[3]) for v in heads[::3])
        assert np.array_equal(next(runner.heads([other])), want[3])


@cases
def test_packed_folders_give_the_same_bits(family: str, name: str, tmp_path: Path) -> None:
    golden = read_encoder(family, name)
    folder = tmp_path / "packed"
    convert(golden.folder, folder)
    packed = everything(golden, folder)
    kept = (
        "f32"
        if json.loads((golden.folder / "config.json").read_text())["dtype"] == "float32"
        else "f16"
    )
    for got, want in zip(packed, everything(golden, format=kept), strict=True):
        assert np.array_equal(got, want)


@cases
def test_nothing_is_in_doubt(family: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """No warning says that a tensor is missing, or was not read."""
    with caplog.at_level(logging.WARNING, "slmq"):
        open_runner(read_encoder(family, name).folder)
    assert not caplog.records


def test_rows_of_the_table_of_distances() -> None:
    """As T5 and MPNet define them, by logarithms."""
    distances = np.arange(-600, 601)
    away = np.abs(distances)
    with np.errstate(divide="ignore"):
        far = 8 + np.floor(np.log(away / 8) / np.log(16) * 8 + 1e-9)
    rows = np.where(away < 8, away, np.minimum(far, 15)) + 16 * (distances > 0)
    assert np.array_equal(buckets_of(distances), rows)
