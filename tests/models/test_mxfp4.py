"""Experts in MXFP4: the very values, in fewer bits than int8 takes, and with its answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import to_gguf
from gguf_writer import write_gguf
from golden import read_golden
from kernel_cases import ISAS, normal
from llama_files import build, feed, logits_of, relative_error
from numpy_weights import read_safetensors
from safetensors.numpy import save_file

from slmq import CheckpointError, _native
from slmq.checkpoint import open_checkpoint
from slmq.conversion.convert import convert
from slmq.conversion.dequantize import dequantize
from slmq.weights.reader import WeightReader

FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FP4 += [-x for x in FP4]


def typical_error(got: Any, want: Any) -> float:
    """Of a row in the middle: rounding changes the choice of an expert now and then."""
    return float(np.median(np.abs(got - want).max(axis=1) / np.abs(want).max(axis=1)))


def mxfp4_folder(folder: Path, spoil: Any = None) -> tuple[Path, Path]:
    """A gpt-oss whose experts are stored in MXFP4, and the same values as floats."""
    golden = read_golden("gpt_oss", "full_first_no_scaling")
    tensors = {
        k: v.astype(np.float32)
        for k, v in read_safetensors(golden.folder / "model.safetensors").items()
    }
    rng = np.random.default_rng(5)
    stored, plain = dict(tensors), dict(tensors)
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        count, k, n = tensors[name].shape
        codes = rng.integers(0, 16, (count, n, k), np.uint8)
        exponents = rng.integers(122, 126, (count, n, k // 32), np.uint8)
        blocks = (codes[..., 0::2] | codes[..., 1::2] << 4).reshape(count, n, k // 32, 16)
        stored[f"{name}_blocks"], stored[f"{name}_scales"] = blocks, exponents
        del stored[name]
        scales = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
        values = np.array(FP4, np.float32)[codes] * np.repeat(scales, 32, axis=2)
        plain[name] = np.ascontiguousarray(values.swapaxes(1, 2))
    config = json.loads((golden.folder / "config.json").read_text("utf-8"))
    quantized = config | {"quantization_config": {"quant_method": "mxfp4"}}
    if spoil is not None:
        spoil(stored)
    for path, parsed, held in (("q", quantized, stored), ("p", config, plain)):
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(parsed), "utf-8")
        save_file(held, folder / path / "model.safetensors", {"format": "pt"})
    return folder / "q", folder / "p"


def test_experts_are_their_values(tmp_path: Path) -> None:
    stored, plain = mxfp4_folder(tmp_path)
    tokens = read_golden("gpt_oss", "full_first_no_scaling").tokens[0]
    want = logits_of(plain, tokens)
    assert np.array_equal(logits_of(stored, tokens), want)
    kept = build(stored, format=None, activations="exact")
    assert typical_error(feed(kept, kept.cache.sequence(), tokens), want) < 2e-3
    assert {step.format for step in kept.steps if step.op.startswith("experts.")} == {"f4g32s"}
    folder = convert(stored, tmp_path / "packed")
    again = build(folder, format=None, activations="exact")
    assert np.array_equal(
        feed(again, again.cache.sequence(), tokens), feed(kept, kept.cache.sequence(), tokens)
    )
    back = dequantize(folder, tmp_path / "back", dtype="f32")
    for name, values in read_safetensors(plain / "model.safetensors").items():
        if "experts" in name:
            found = read_safetensors(back / "model.safetensors")[name]
            assert np.array_equal(found, values), name


def test_a_step_reads_the_bytes_of_its_experts(tmp_path: Path) -> None:
    """4.5 bits a weight of every expert that it touches, as `bench` counts them."""
    plan = build(mxfp4_folder(tmp_path)[0], format=None)
    tokens = list(read_golden("gpt_oss", "full_first_no_scaling").tokens[0])
    sequence = plan.cache.sequence()
    before = plan.native.bytes_read
    feed(plan, sequence, tokens[:1])
    read = plan.native.bytes_read - before
    others = sum(step.weight_bytes for step in plan.steps if not step.op.startswith("experts."))
    # Three layers of three experts, all touched, of three matrices of 64 x 32, padded to nothing.
    assert read - others == 3 * 3 * 3 * 64 * 32 * 4.5 / 8


@pytest.mark.parametrize(("n", "k"), [(32, 64), (70, 96), (96, 2880)])
def test_products_have_the_bits_of_int8(n: int, k: int) -> None:
    """As these weights were kept before: the integers are the same, and so are all sums."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (n, k), np.uint8)
    integers = np.array([2 * x for x in FP4], np.int16)[codes]
    scales = np.ldexp(np.float32(1), rng.integers(-24, 16, (n, k // 32))).astype(np.float16)
    packed = {
        name: _native.Matrix.from_parts(name, n, k, stored, scales)
        for name, stored in (("q8g32s", (integers + 128).astype(np.uint8)), ("f4g32s", codes))
    }
    assert np.array_equal(*(m.dequantize(0, n) for m in packed.values()))
    for activations in ("a8g32", "a16g32", "a8o16g32"):
        for rows in (1, 3, 20):
            x = normal(rows, k, seed=rows)
            want = ISAS["scalar"].linear(packed["q8g32s"], x, 1, activations)
            for isa, table in ISAS.items():
                got = table.linear(packed["f4g32s"], x, 2, activations)
                assert np.array_equal(got, want), (isa, activations, rows)


# --- scales that float16 does not hold ------------------------------------------------------------


def one_matrix(
    tmp_path: Path, kind: str, change: Callable[[Any, Any], None]
) -> tuple[Path, str, Any]:
    """A file with one matrix of 40 x 96, its name, and its values."""
    rng = np.random.default_rng(2)
    codes = rng.integers(1, 8, (40, 96), np.uint8)
    exponents = rng.integers(104, 144, (40, 3), np.uint8)
    change(codes, exponents)
    scales = np.ldexp(1.0, exponents.astype(np.int32) - 127)
    values = np.array(FP4)[codes] * np.repeat(scales, 32, axis=1)
    if kind == "gguf":
        groups = codes.reshape(-1, 2, 16)
        nibbles = groups[:, 0] | groups[:, 1] << 4
        blocks = np.concatenate([exponents.reshape(-1, 1), nibbles], 1).reshape(40, -1)
        path = tmp_path / "w.gguf"
        write_gguf(path, {"general.architecture": "llama"}, {"w": (blocks, "mxfp4")})
        return path, "w", values
    tensors = {
        "w_blocks": (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(40, 3, 16),
        "w_scales": exponents,
    }
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path, "w", values


def nothing(codes: Any, exponents: Any) -> None:
    exponents[5] = (104, 143, 120)


def zeros_of_any_scale(codes: Any, exponents: Any) -> None:
    exponents[7, 1], exponents[9, 2] = 0, 254
    codes[7, 32:64] = 0
    codes[9, 64:] = 8  # which is -0


def too_small(codes: Any, exponents: Any) -> None:
    exponents[7, 1] = 103


def smallest_of_all(codes: Any, exponents: Any) -> None:
    exponents[7, 1] = 0


def too_large(codes: Any, exponents: Any) -> None:
    exponents[39, 2] = 144


kinds = pytest.mark.parametrize("kind", ["folder", "gguf"])


@kinds
@pytest.mark.parametrize(
    ("change", "format"),
    [
        (nothing, "f4g32s"),
        (zeros_of_any_scale, "f4g32s"),
        (too_small, "f32"),
        (smallest_of_all, "f32"),
        (too_large, "f32"),
    ],
)
def test_every_value_is_kept(
    kind: str, change: Any, format: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, name, values = one_matrix(tmp_path, kind, change)
    order = np.random.default_rng(1).permutation(40).astype(np.int32)
    with caplog.at_level(logging.WARNING, "slmq"), open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, memory="small", threads=2)
        assert reader.format_of(name, 40, 96) == format
        matrix = reader.linear(name, 40, 96).matrix
        turned = reader.linear(name, 40, 96, order=order).matrix
    assert matrix.format == format
    assert np.array_equal(matrix.dequantize(0, 40), values)
    assert np.array_equal(turned.dequantize(0, 40), values[order])
    assert caplog.text.count("type mxfp4 take") == 1
    assert ("some of their scales are no float16" in caplog.text) == (format == "f32")


@kinds
def test_scales_that_are_no_numbers(kind: str, tmp_path: Path) -> None:
    def spoil(codes: Any, exponents: Any) -> None:
        exponents[1, 2] = 255

    path, _, _ = one_matrix(tmp_path, kind, spoil)
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(CheckpointError, match=r"powers of two as scales, found NaN .* in group 5"),
    ):
        WeightReader(checkpoint, memory="small")


@kinds
def test_values_that_are_no_float32(kind: str, tmp_path: Path) -> None:
    def spoil(codes: Any, exponents: Any) -> None:
        exponents[1, 2], codes[1, 64:] = 254, 7

    path, name, _ = one_matrix(tmp_path, kind, spoil)
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(CheckpointError, match="finite"),
    ):
        WeightReader(checkpoint, memory="small").linear(name, 40, 96)


def test_one_such_expert_among_others(tmp_path: Path) -> None:
    """It is multiplied in float32, and the others in integers."""

    def spoil(stored: dict[str, Any]) -> None:
        stored["model.layers.1.mlp.experts.down_proj_scales"][1, 3, 0] = 100

    folder, _ = mxfp4_folder(tmp_path, spoil)
    tokens = read_golden("gpt_oss", "full_first_no_scaling").tokens[0]
    want = logits_of(folder, tokens)
    kept = build(folder, format=None, activations="exact")
    assert typical_error(feed(kept, kept.cache.sequence(), tokens), want) < 2e-3
    packed = convert(folder, tmp_path / "packed")
    with open_checkpoint(packed) as checkpoint:
        name = "model.layers.1.mlp.experts.down_proj[{}]"
        found = [checkpoint.tensors[name.format(i)].dtype for i in range(3)]
    assert found == ["f4g32s", "f32", "f4g32s"]
    again = build(packed, format=None, activations="exact")
    assert np.array_equal(
        feed(again, again.cache.sequence(), tokens), feed(kept, kept.cache.sequence(), tokens)
    )


# --- files ----------------------------------------------------------------------------------------


def test_in_gguf_is_the_folder(tmp_path: Path) -> None:
    """Values alike, as llama.cpp's converter moves the same codes."""
    _, plain = mxfp4_folder(tmp_path)
    path = to_gguf(plain, tmp_path / "m.gguf")
    tokens = read_golden("gpt_oss", "full_first_no_scaling").tokens[0]
    assert relative_error(logits_of(path, tokens), logits_of(plain, tokens)) < 1e-6


def narrow(stored: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.experts.down_proj_blocks"
    stored[name] = np.ascontiguousarray(stored[name][..., :8])


def scaleless(stored: dict[str, Any]) -> None:
    del stored["model.layers.1.mlp.experts.gate_up_proj_scales"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (narrow, r"down_proj_blocks\[0\].*expected uint8 \[rows, groups, 16\]"),
        (scaleless, r"layers\.1.*gate_up_proj_blocks\[0\].*scales of uint8 .*found none"),
    ],
)
def test_whose_parts_do_not_fit(spoil: Any, message: str, tmp_path: Path) -> None:
    stored, _ = mxfp4_folder(tmp_path, spoil)
    with pytest.raises(CheckpointError, match=message):
        build(stored)
