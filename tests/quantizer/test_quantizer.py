"""Quantized folders: never worse than plain rounding, the same everywhere, whole or resumable."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from golden import GOLDENS
from llama_files import logits_of
from typer.main import get_command
from typer.testing import CliRunner

import slmq
from slmq import _native
from slmq.checkpoint import open_checkpoint
from slmq.cli.app import app
from slmq.cli.output import Bar
from slmq.cli.quantize import saying_where
from slmq.formats import FORMATS, NORMAL4, unpack
from slmq.quantizer.grids import GRIDS, fits, pack_rounded
from slmq.quantizer.methods import round_searched

F32 = npt.NDArray[np.float32]
TOKENS = [5, 1, 9, 30, 2, 7, 7, 11]
PLAIN = ("q4g32s", "q4g32a", "q8g32s")  # what Matrix.pack rounds floats to
SOURCE = GOLDENS / "llama" / "biases"


def heavy_tailed(n: int, k: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_t(4, (n, k)).astype(np.float32)


def plain(w: F32, fmt: str) -> F32:
    raw = np.ascontiguousarray(w).reshape(-1).view(np.uint8)
    return _native.Matrix.pack("f32", raw, *w.shape, fmt).dequantize(0, len(w))


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_help_and_docstring_name_every_format() -> None:
    options = {p.name: p.help for p in get_command(app).commands["quantize"].params}  # type: ignore[attr-defined]
    docstring = (slmq.quantize.__doc__ or "").partition("format : str")[2].partition("bits :")[0]
    for text in (options["format"], docstring):
        assert set(re.findall(r"\b[qn]\d\w+", text)) == set(GRIDS)


# --- one matrix -----------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", PLAIN)
@pytest.mark.parametrize("shape", [(1, 1), (33, 50), (16, 160)])
def test_a_search_beats_plain_rounding_in_every_group(fmt: str, shape: tuple[int, int]) -> None:
    w = heavy_tailed(*shape)
    searched = round_searched(w, fmt).values()
    for begin in range(0, shape[1], 32):
        part = slice(begin, begin + 32)
        best = np.square(w[:, part] - searched[:, part]).sum(1)
        usual = np.square(w[:, part] - plain(w, fmt)[:, part]).sum(1)
        assert (best <= usual * (1 + 1e-5) + 1e-12).all()


def test_a_search_gains_what_it_should() -> None:
    """On heavy tails: a tenth of the squared error at least, a fifth with a min."""
    w = heavy_tailed(256, 256)
    for fmt, most in (("q4g32s", 0.93), ("q4g32a", 0.85)):
        usual = np.square(w - plain(w, fmt)).sum()
        assert np.square(w - round_searched(w, fmt).values()).sum() < most * usual


def test_importance_moves_the_error_to_columns_that_matter_less() -> None:
    w = heavy_tailed(64, 64)
    importance = np.where(np.arange(64) % 2 == 0, 100, 1).astype(np.float32)

    def error(values: F32) -> float:
        return float((np.square(w - values) * importance).sum())

    weighted = round_searched(w, "q4g32a", importance).values()
    assert error(weighted) < 0.8 * error(round_searched(w, "q4g32a").values())


@pytest.mark.parametrize("fmt", GRIDS)
def test_packed_codes_are_the_values(fmt: str) -> None:
    """Bit for bit what kernels see, also in rows that do not fill a group."""
    k = 172 if fits(fmt, 172) else 512
    rounded = round_searched(heavy_tailed(50, k), fmt)
    matrix = pack_rounded(rounded)
    assert (matrix.dequantize(0, 50) == rounded.values()).all()
    assert (unpack(matrix.packed, 50, k, FORMATS[fmt]) == rounded.values()).all()


ODD = {
    "zeros": np.zeros((2, 256)),
    "all alike": np.full((2, 256), 3.5),
    "all alike, below zero": np.full((2, 256), -3.5),
    "tiny": np.full((2, 256), 1e-9),
    "one large": np.eye(2, 256) * 5e4,
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("fmt", GRIDS)
def test_odd_groups_are_rounded(fmt: str, name: str) -> None:
    w = ODD[name].astype(np.float32)
    rounded = round_searched(w, fmt)
    assert np.abs(rounded.values() - w).max() <= np.abs(w).max() / 100 + 1e-7
    assert (pack_rounded(rounded).dequantize(0, 2) == rounded.values()).all()


@pytest.mark.parametrize(
    ("fmt", "other"),
    [
        ("n4g32", "q4g32s"),
        ("n4k", "q4g32s"),
        ("n4g32s", "q4g32s"),
        ("q4k", "q4g32s"),
        ("q5k", "q4g32a"),
        ("q6k", "q5k"),
        ("q4g64z", "q4g64s"),
        ("q5g32s", "q4g32a"),
        ("q5g32a", "q5g32s"),
        ("q6g32s", "q5g32a"),
        ("q8g32s", "q6g32s"),
    ],
)
def test_more_bits_make_less_error(fmt: str, other: str) -> None:
    w = heavy_tailed(64, 512)
    mine, theirs = (np.square(w - round_searched(w, f).values()).sum() for f in (fmt, other))
    assert mine < 0.95 * theirs


@pytest.mark.parametrize("fmt", ["n4g32", "n4k", "n4g32s"])
def test_what_a_table_holds_is_kept(fmt: str) -> None:
    """Codes of both ends in every group, both tables, scales of both signs."""
    grid, rng = GRIDS[fmt], np.random.default_rng(4)
    codes = rng.integers(0, 16, (40, 256), np.uint8)
    codes[:, ::32], codes[:, 7::32] = 0, 15
    scales = rng.integers(24, 64, (40, 8)) * rng.choice([-1, 1], (40, 8))
    scales[:, 5] = 63  # units are 1/63 of the largest
    lifts = rng.choice([0, grid.lift], (40, 8))
    values = np.array(NORMAL4)[codes] + np.repeat(lifts, 32, axis=1)
    w = (np.repeat(scales, 32, axis=1) * values * 2.0**-12).astype(np.float32)
    assert (round_searched(w, fmt).values() == w).all()


def test_what_float16_cannot_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="too large for float16"):
        round_searched(np.full((1, 32), 1e9, np.float32), "q4g32a")


# --- the native functions -------------------------------------------------------------------


def groups(**changes: Any) -> _native.Groups:
    numbers = {"columns": 32, "low": -8, "high": 7, "zero": 8, "has_min": False}
    stored = {"stored": "halves", "scale_low": 0, "scale_high": 15, "per_unit": 1}
    return _native.Groups(**(numbers | stored | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": 33}, "groups of 8..128 columns, a multiple of 8, got 33"),
        ({"columns": 256}, "groups of 8..128 columns"),
        ({"low": 1}, "levels low <= 0 < high"),
        ({"high": 0}, "levels low <= 0 < high"),
        ({"zero": 7}, "codes fit a byte"),
        ({"low": 0, "zero": 0}, "levels low <= 0 < high"),  # without a min nothing is below zero
        ({"stored": "tenths"}, "expected 'halves', 'multiples' or 'zero_point', got 'tenths'"),
        ({"per_unit": 0}, "at least one group per d"),
        ({"values": range(-8, 9), "high": 8}, "a table of at most 16 values, got 17"),
        ({"values": [-8, 3, 3, 7]}, "expected values that ascend"),
        ({"values": [-8, 3, 6]}, "a table from low to high, and no min"),
        ({"values": [-8, 3, 7], "has_min": True}, "a table from low to high, and no min"),
    ],
    ids=str,
)
def test_groups_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups(**changes)


def test_numbers_and_arrays_go_by_name() -> None:
    """None can be taken for another: what was a tuple is a struct."""
    halves = np.ones((2, 1), np.float32)
    with pytest.raises(TypeError):
        _native.Groups(32, -8, 7, 8, False, "halves", 0, 15, 1)  # type: ignore[misc]
    with pytest.raises(TypeError):
        _native.Units(halves, halves)  # type: ignore[misc]
    with pytest.raises(TypeError, match="dmin: expected float32"):
        _native.Units(d=halves, dmin=halves.astype(np.float64))  # type: ignore[arg-type]
    units = _native.Units(d=halves, dmin=2 * halves)
    assert (units.dmin == 2 * units.d).all()


def test_units_fit_their_matrix() -> None:
    w = heavy_tailed(3, 512)
    multiples = groups(stored="multiples", low=0, high=15, zero=0, has_min=True, per_unit=8)
    good, short = np.ones((3, 2), np.float32), np.ones((3, 1), np.float32)
    found = _native.search_scales(w, None, multiples, _native.Units(d=good, dmin=good))
    assert found.codes.shape == w.shape
    assert found.scales.shape == found.mins.shape == (3, 16)
    for units in (_native.Units(d=short, dmin=good), _native.Units(d=good, dmin=short)):
        with pytest.raises(ValueError, match=r"expected float32\[3, 2\], got float32\[3, 1\]"):
            _native.search_scales(w, None, multiples, units)


def test_a_rounding_fits_its_matrix() -> None:
    found = _native.search_scales(heavy_tailed(3, 64), None, groups(), None)
    other = heavy_tailed(3, 96)
    with pytest.raises(ValueError, match=r"codes: expected uint8\[3, 96\], got uint8\[3, 64\]"):
        _native.refine_rounding(other, found, np.eye(96, dtype=np.float32), groups(), None, 1)


# --- whole models ---------------------------------------------------------------------------


def test_a_quantized_folder_runs_and_says_where_it_comes_from(tmp_path: Path) -> None:
    made = slmq.quantize(SOURCE, tmp_path / "q", format="int8", n_threads=2)
    assert len(repr(made)) < 200 + len(str(made.path))  # no report of every tensor
    assert made.bits_per_weight == 8.5
    assert {t.format for t in made.tensors} == {"q8g32s"}
    exact, rounded = logits_of(SOURCE, TOKENS), logits_of(made.path, TOKENS, format=None)
    assert np.abs(exact - rounded).max() < 0.06 * np.abs(exact).max()
    with open_checkpoint(made.path) as checkpoint:
        said = checkpoint.metadata["slmq"]
    assert said["method"] == "auto"
    assert said["source"][0]["name"] == "model.safetensors"
    assert re.fullmatch("[0-9a-f]{64}", said["source"][0]["sha256"])


def test_threads_do_not_change_a_byte(tmp_path: Path) -> None:
    one = slmq.quantize(SOURCE, tmp_path / "one", n_threads=1)
    two = slmq.quantize(SOURCE, tmp_path / "two", n_threads=2)
    assert folder_bytes(one.path) == folder_bytes(two.path)


class StopError(Exception):
    """Somebody interrupts."""


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = slmq.quantize(SOURCE, tmp_path / "whole")
    target = tmp_path / "q"
    steps: list[int] = []

    def stop_half_way(_what: str, done: int, total: int) -> None:
        steps.append(done)
        if done > total // 2:
            raise StopError

    with pytest.raises(StopError):
        slmq.quantize(SOURCE, target, progress=stop_half_way)
    assert not target.exists()
    work = tmp_path / ".q.quantizing"
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("*.bin")}
    assert kept
    with pytest.raises(StopError):  # other settings: nothing of it is of use
        slmq.quantize(SOURCE, target, format="int8", progress=stop_half_way)
    with pytest.raises(StopError):
        slmq.quantize(SOURCE, target, progress=stop_half_way)
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("*.bin")}

    def unchanged(_what: str, _done: int, _total: int) -> None:
        now = {path.name: path.stat().st_mtime_ns for path in work.glob("*.bin")}
        assert kept.items() <= now.items()

    slmq.quantize(SOURCE, target, progress=unchanged)
    assert folder_bytes(target) == folder_bytes(whole.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q", "whole"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "int3"}, "expected a weight format"),
        ({"format": "f16"}, "expected int4, int8"),
        ({"method": "magic"}, "method: expected one of auto, rtn"),
        ({"method": "feedback"}, "needs a calibration text"),
        ({"format": "int4", "bits": 5}, "format or bits, got both"),
        ({"bits": 4}, "expected 4.5 to 8.5 for this model, got 4"),
        ({"bits": 9}, "expected 4.5 to 8.5 for this model, got 9"),
    ],
)
def test_unknown_settings_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        slmq.quantize(SOURCE, tmp_path / "q", **options)
    assert list(tmp_path.iterdir()) == []  # nothing was begun


# --- and back -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", ["llama/biases", "phi3/fused_gqa", "gpt2/learned_positions", "gpt_neox/parallel"]
)
def test_dequantized_folders_are_ordinary(family: str, tmp_path: Path) -> None:
    """The names and shapes of the source, in float16, with the values that kernels see."""
    made = slmq.quantize(GOLDENS / family, tmp_path / "q")
    back = slmq.dequantize(made, tmp_path / "f16")
    source = safetensors.numpy.load_file(GOLDENS / family / "model.safetensors")
    stored = safetensors.numpy.load_file(back / "model.safetensors")
    assert {n: v.shape for n, v in stored.items()} == {n: v.shape for n, v in source.items()}
    assert {v.dtype for v in stored.values()} == {np.dtype(np.float16)}
    for name, values in stored.items():
        assert np.abs(values - source[name]).max() < 0.1 * np.abs(source[name]).max()
    quantized, plain_logits = (
        logits_of(made.path, TOKENS, format=None),
        logits_of(back, TOKENS, format=None),
    )
    assert np.abs(quantized - plain_logits).max() < 0.05 * np.abs(plain_logits).max()


@pytest.mark.parametrize(("dtype", "named"), [("f16", "float16"), ("f32", "float32")])
def test_every_transformers_loads_a_dequantized_folder_in_its_own_type(
    dtype: str, named: str, tmp_path: Path
) -> None:
    """Version 5 reads "dtype", which a source may have; older ones read "torch_dtype"."""
    assert json.loads((SOURCE / "config.json").read_text("utf-8"))["dtype"] == "float32"
    folder = slmq.dequantize(SOURCE, tmp_path / "back", dtype=dtype)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert (config["dtype"], config["torch_dtype"]) == (named, named)


def test_the_command_ends_with_what_was_made_and_stops_with_what_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = CliRunner().invoke(app, ["quantize", str(SOURCE), str(tmp_path / "q")])
    assert done.stdout == f"{tmp_path / 'q'}\n"
    assert "bits per weight, from " in done.stderr
    assert "share of the weights" not in done.stderr
    mixed = CliRunner().invoke(app, ["quantize", str(SOURCE), str(tmp_path / "m"), "--bits", "6"])
    [line] = [line for line in mixed.stderr.splitlines() if "share of the weights: " in line]
    said = dict(part.split(" ") for part in line.partition(": ")[2].split(", "))
    assert len(said) >= 2
    assert abs(sum(float(share.rstrip("%")) for share in said.values()) - 100) < 0.5
    assert f"slmq compare {SOURCE} {tmp_path / 'q'} --file TEXT" in done.stderr
    bar = Bar()
    bar.update("layer", 3, 32)
    with pytest.raises(KeyboardInterrupt), saying_where(bar):
        raise KeyboardInterrupt
    assert "stopped at layer, 3 of 32; repeat the command" in capsys.readouterr().err


def test_dequantized_to_float32_nothing_is_rounded(tmp_path: Path) -> None:
    """What a matrix of scales times integers stands for, to the last bit."""
    made = slmq.quantize(GOLDENS / "llama/biases", tmp_path / "q", format="int8")
    back = slmq.dequantize(made, tmp_path / "f32", dtype="f32")
    wide = safetensors.numpy.load_file(back / "model.safetensors")
    assert {v.dtype for v in wide.values()} == {np.dtype(np.float32)}
    half = slmq.dequantize(made, tmp_path / "f16")
    narrow = safetensors.numpy.load_file(half / "model.safetensors")
    rounded = {name: values.astype(np.float16) for name, values in wide.items()}
    assert all((rounded[name] == values).all() for name, values in narrow.items())
    assert any((narrow[name].astype(np.float32) != values).any() for name, values in wide.items())
    same = logits_of(made.path, TOKENS, format=None, activations="exact")
    plain = logits_of(back, TOKENS, format=None)
    assert np.abs(same - plain).max() < 0.001 * np.abs(plain).max()
    with pytest.raises(ValueError, match="dtype: expected one of f16, f32; got 'f64'"):
        slmq.dequantize(made, tmp_path / "f64", dtype="f64")


# --- whole models ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("q6k", "q6g32s"),
        ("q5k", "q5g32s"),
        ("q4g64s", "q4g32s"),
        ("q4k", "q4g32a"),
        ("n4k", "n4g32s"),
    ],
)
def test_short_rows_get_as_many_bits_and_it_is_said(
    asked: str,
    given: str,
    tiny_model_path: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = slmq.quantize(tiny_model_path, tmp_path / "q", format=asked)
    formats = {tensor.name: tensor.format for tensor in made.tensors}
    short = [name for name, fmt in formats.items() if fmt == given]
    assert short
    assert set(formats.values()) <= {asked, given}
    said = f"{len(short)} of {len(formats)} matrices get {given}: their rows are no multiple"
    assert said in caplog.text


def test_a_mix_has_steps_between_five_and_eight_bits(tiny_model_path: Path, tmp_path: Path) -> None:
    """For rows that are no multiple of 256, too."""
    used = set[str]()
    for bits in (5.4, 5.8, 6.3, 7.0):
        made = slmq.quantize(tiny_model_path, tmp_path / f"q{bits}", bits=bits)
        assert bits - 0.3 < made.bits_per_weight <= bits
        used |= {tensor.format for tensor in made.tensors}
    assert used & {"q5g32s", "q5g32a"}
    assert "q6g32s" in used
