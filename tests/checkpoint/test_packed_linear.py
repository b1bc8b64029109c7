"""GPTQ, AWQ and compressed-tensors weights against codes that an independent packer stored."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from int_packer import Known, config_of, known_weight, rounded, tensors_of, write_folder
from kernel_cases import pack, same_bits

from slmq import CheckpointError
from slmq.checkpoint import open_checkpoint
from slmq.checkpoint.foreign.integers import ForeignLinear
from slmq.checkpoint.foreign.weight import decode, foreign_weights
from slmq.weights.reader import WeightReader

N, K = 40, 256
GPTQ, AWQ, CT = "gptq", "awq", "compressed-tensors"

# name: (method, what `known_weight` and the config take, what the layout takes, stored format)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "gptq 128": (GPTQ, {"symmetric": True}, {}, "q4g128s"),
    "gptq 64": (GPTQ, {"group_size": 64, "symmetric": True}, {}, "q4g64s"),
    "gptq 32": (GPTQ, {"group_size": 32, "symmetric": True}, {}, "q4g32s"),
    "gptq rows": (GPTQ, {"group_size": -1, "symmetric": True}, {}, "q4g128s"),
    "gptq v2": (GPTQ, {"symmetric": True}, {"version": 2}, "q4g128s"),
    "gptq zeros": (GPTQ, {}, {}, "q4g128z"),
    "gptq zeros v2": (GPTQ, {"group_size": 32}, {"version": 2}, "q4g32z"),
    "gptq zeros rows": (GPTQ, {"group_size": -1}, {}, "q4g128z"),
    "gptq desc_act": (GPTQ, {"desc_act": True, "symmetric": True}, {}, "q4g128s"),
    "gptq desc_act zeros": (GPTQ, {"desc_act": True, "group_size": 32}, {}, "q4g32z"),
    "gptq desc_act rows": (GPTQ, {"desc_act": True, "group_size": -1}, {}, "q4g128z"),
    "gptq 8 bits": (GPTQ, {"bits": 8, "symmetric": True}, {}, "q8g32s"),
    "gptq 8 bits rows": (GPTQ, {"bits": 8, "symmetric": True, "group_size": -1}, {}, "q8g32s"),
    "gptq 8 bits zeros": (GPTQ, {"bits": 8}, {}, "f16"),
    "gptq desc_act 96": (GPTQ, {"desc_act": True, "group_size": 96}, {}, "f16"),
    "gptq 8 bits desc_act": (GPTQ, {"bits": 8, "symmetric": True, "desc_act": True}, {}, "q8g32s"),
    "gptq bfloat16": (GPTQ, {"symmetric": True, "scale_dtype": "bfloat16"}, {}, "q4g128s"),
    "gptq float32": (GPTQ, {"symmetric": True, "scale_dtype": "float32"}, {}, "f16"),
    "gptq 16": (GPTQ, {"group_size": 16, "symmetric": True}, {}, "f16"),
    "gptq 96": (GPTQ, {"group_size": 96, "symmetric": True}, {}, "q4g32s"),  # the last has 64
    "gptq 96 zeros": (GPTQ, {"group_size": 96, "scale_dtype": "float32"}, {}, "f16"),
    "awq 128": (AWQ, {}, {}, "q4g128z"),
    "awq 64": (AWQ, {"group_size": 64}, {}, "q4g64z"),
    "awq 32": (AWQ, {"group_size": 32}, {}, "q4g32z"),
    "awq rows": (AWQ, {"group_size": -1}, {}, "q4g128z"),
    "awq 48": (AWQ, {"group_size": 48}, {}, "f16"),
    "awq bfloat16": (AWQ, {"scale_dtype": "bfloat16"}, {}, "q4g128z"),
    "ct 128": (CT, {"symmetric": True}, {}, "q4g128s"),
    "ct 32 bfloat16": (CT, {"symmetric": True, "group_size": 32, "scale_dtype": "bfloat16"},
                       {}, "q4g32s"),
    "ct rows": (CT, {"symmetric": True, "group_size": -1}, {}, "q4g128s"),
    "ct zeros": (CT, {}, {}, "q4g128z"),
    "ct int8 zeros": (CT, {"group_size": 64}, {"zeros": "int8"}, "q4g64z"),
    "ct g_idx": (CT, {"desc_act": True}, {}, "q4g128z"),
    "ct 8 bits": (CT, {"bits": 8, "symmetric": True}, {}, "q8g32s"),
    "ct 8 bits rows": (CT, {"bits": 8, "symmetric": True, "group_size": -1}, {}, "q8g32s"),
}  # fmt: skip
cases = pytest.mark.parametrize("name", CASES)


def folder_of(path: Path, name: str, n: int = N, k: int = K) -> tuple[Path, Known]:
    """A folder with the weight "a.weight" of a case, and what was stored."""
    method, options, layout, _ = CASES[name]
    x = known_weight(n, k, **options)
    symmetric = bool(options.get("symmetric"))
    parts = tensors_of(method, x, **({"symmetric": symmetric} if method == CT else {}), **layout)
    extra = {"checkpoint_format": "gptq_v2"} if layout.get("version") == 2 else {}
    quantization = config_of(
        method,
        bits=x.bits,
        group_size=options.get("group_size", 128),
        symmetric=symmetric,
        **extra,
    )
    tensors = {f"a.{part}": array for part, array in parts.items()}
    config = {"quantization_config": quantization}
    return write_folder(path, config, tensors, x.scale_dtype), x


def opened(path: Path) -> ForeignLinear:
    """The weight "a.weight" of a folder; the mapping stays alive in its views."""
    found = foreign_weights(open_checkpoint(path))["a.weight"]
    assert isinstance(found, ForeignLinear)
    return found


@cases
def test_the_integers_are_those_that_were_packed(name: str, tmp_path: Path) -> None:
    path, x = folder_of(tmp_path, name)
    weight = opened(path)
    assert weight.info.shape == (N, K)
    assert weight.info.dtype == f"{CASES[name][0]} int{x.bits}"
    assert weight.bits == x.bits
    for begin, end in [(0, N), (0, 1), (3, 13), (8, 16), (39, 40)]:
        got = weight.integers(begin, end)
        assert got.codes.tolist() == x.codes[begin:end].tolist()
        assert got.zeros.tolist() == x.zeros[begin:end].tolist()
        assert same_bits(got.scales, x.scales[begin:end])
        assert got.columns().tolist() == x.group_of.tolist()
        assert same_bits(got.dequantize(), x.values()[begin:end])


@cases
@pytest.mark.parametrize("threads", [1, 2])
def test_loaded_as_they_are_or_rounded_with_a_warning(
    name: str,
    threads: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slmq.checkpoint.foreign.chunks.CHUNK", 11 * K)
    path, x = folder_of(tmp_path, name)
    with caplog.at_level(logging.WARNING, "slmq"), open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, memory="small", threads=threads)
        assert reader.has("a.weight")
        linear = reader.linear("a.weight", N, K)
    got = linear.matrix
    assert got.format == CASES[name][3]
    values = x.values()
    if linear.columns is not None:
        groups = x.group_of[linear.columns]
        assert "desc_act" in name or "g_idx" in name
        assert groups.tolist() == sorted(x.group_of)
        values = values[:, linear.columns]
    if got.format == "f16":
        assert same_bits(got.dequantize(0, N), values.astype(np.float16).astype(np.float32))
        assert [f"{CASES[name][0]} int{x.bits}" in m for m in caplog.messages] == [True]
    else:
        assert np.array_equal(got.dequantize(0, N), values)
        assert not caplog.messages
    assert reader.parameters == N * K


def test_groups_of_other_sizes_are_not_sorted(tmp_path: Path) -> None:
    """g_idx may give a group more columns than another: no run of columns has one scale."""
    path, x = folder_of(tmp_path, "gptq desc_act")
    x.group_of[np.flatnonzero(x.group_of == 0)[0]] = 1
    tensors = {f"a.{p}": t for p, t in tensors_of(GPTQ, x).items()}
    write_folder(path, json.loads((path / "config.json").read_text("utf-8")), tensors)
    assert opened(path).columns is None
    assert opened(path).kept is None
    assert same_bits(decode(opened(path)), x.values())


@pytest.mark.parametrize("format", ["int4", "q4g32s", "f16", "f32"])
@pytest.mark.parametrize("name", ["gptq 128", "awq 128", "ct zeros"])
def test_what_is_asked_for_is_made_of_the_values(name: str, format: str, tmp_path: Path) -> None:
    path, x = folder_of(tmp_path, name)
    with open_checkpoint(path) as checkpoint:
        got = (
            WeightReader(checkpoint, format=format, memory="small").linear("a.weight", N, K).matrix
        )
    assert np.array_equal(got.packed, pack(x.values(), got.format).packed)


def test_rows_and_columns_that_fill_no_tile(tmp_path: Path) -> None:
    for name, n, k, kept in [
        ("gptq rows", 8, 40, "q4g32s"),
        ("awq rows", 24, 33, "q4g32z"),
        ("ct rows", 3, 37, "q4g32s"),
        ("gptq zeros rows", 8, 192, "q4g64z"),
        ("gptq 8 bits rows", 8, 40, "q8g32s"),
    ]:
        path, x = folder_of(tmp_path / name, name, n, k)
        assert same_bits(decode(opened(path)), x.values())
        with open_checkpoint(path) as checkpoint:
            got = WeightReader(checkpoint, memory="small").linear("a.weight", n, k).matrix
        assert got.format == kept
        assert np.array_equal(got.dequantize(0, n), x.values())


def test_zeros_of_the_first_gptq_format_wrap(tmp_path: Path) -> None:
    """A stored 15 means 16, which its four bits hold as 0."""
    path, x = folder_of(tmp_path, "gptq 128")
    tensors = tensors_of(GPTQ, x)
    tensors["qzeros"][:] = -1
    config = json.loads((path / "config.json").read_text("utf-8"))
    write_folder(path, config, {f"a.{p}": t for p, t in tensors.items()})
    assert not opened(path).integers(0, N).zeros.any()


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json"])
def test_configs_in_files_of_their_own(file: str, tmp_path: Path) -> None:
    method = GPTQ if file == "quantize_config.json" else AWQ
    path, x = folder_of(tmp_path, f"{method} 64")
    quantization = json.loads((path / "config.json").read_text("utf-8"))["quantization_config"]
    del quantization["quant_method"]
    if method == AWQ:
        quantization["w_bit"] = quantization.pop("bits")
        quantization["q_group_size"] = quantization.pop("group_size")
        quantization["version"] = "GEMM"
    (path / "config.json").write_text("{}", "utf-8")
    (path / file).write_text(json.dumps(quantization), "utf-8")
    assert same_bits(opened(path).integers(0, N).dequantize(), x.values())


def test_modules_of_their_own_width_and_group(tmp_path: Path) -> None:
    """GPTQModel's "dynamic" and several config groups: each weight by its own shapes."""
    a = known_weight(N, K, group_size=128)
    b = known_weight(N, K, bits=8, group_size=32, symmetric=True)
    gptq = {"bits": 4, "group_size": 128, "dynamic": {"+:.*b": {"bits": 8, "group_size": 32}}}
    ct = config_of(CT)
    second = config_of(CT, bits=8, group_size=32, symmetric=True)["config_groups"]["group_0"]
    ct["config_groups"]["group_1"] = second
    for method, config in [(GPTQ, config_of(GPTQ, **gptq)), (CT, ct)]:
        symmetric = {"symmetric": True} if method == CT else {}
        tensors = {f"a.{p}": t for p, t in tensors_of(method, a).items()}
        tensors |= {f"b.{p}": t for p, t in tensors_of(method, b, **symmetric).items()}
        path = write_folder(tmp_path / method, {"quantization_config": config}, tensors)
        with open_checkpoint(path) as checkpoint:
            found = foreign_weights(checkpoint)
            for name, x in [("a.weight", a), ("b.weight", b)]:
                assert same_bits(decode(found[name]), x.values())


def test_g_idx_of_minus_one_means_in_order(tmp_path: Path) -> None:
    x = known_weight(N, K, symmetric=True)
    tensors = tensors_of(CT, x, symmetric=True) | {"weight_g_idx": np.full(K, -1, np.int32)}
    config = {"quantization_config": config_of(CT, symmetric=True)}
    path = write_folder(tmp_path, config, {f"a.{p}": t for p, t in tensors.items()})
    assert opened(path).group_of is None
    assert same_bits(opened(path).integers(0, N).dequantize(), x.values())


def test_zero_points_far_from_the_codes(tmp_path: Path) -> None:
    """An int8 zero point may lie where code - zero leaves int8: rounded, never wrapped."""
    x = known_weight(N, K)
    x.zeros[:] = 8 - 128
    path = write_folder(
        tmp_path,
        {"quantization_config": config_of(CT)},
        {f"a.{p}": t for p, t in tensors_of(CT, x, zeros="int8").items()},
    )
    assert opened(path).kept is None
    assert same_bits(opened(path).integers(0, N).dequantize(), x.values())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["gptq 128", "awq 128", "ct zeros"])
def test_scales_that_are_not_finite(name: str, value: float, tmp_path: Path) -> None:
    method, options, _, _ = CASES[name]
    x = known_weight(N, K, **options)
    x.scales[N - 1, 1] = value
    tensors = {f"a.{p}": t for p, t in tensors_of(method, x).items()}
    path = write_folder(tmp_path, {"quantization_config": config_of(method)}, tensors)
    with open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, memory="small")
        with pytest.raises(CheckpointError, match="finite weights, found NaN or inf") as caught:
            reader.linear("a.weight", N, K)
    assert caught.value.tensor == "a.weight"


# -- what is refused -----------------------------------------------------------------------------

Tensors = dict[str, Any]


def without(part: str) -> Callable[[Tensors], Any]:
    return lambda t: t.pop(f"a.{part}")


def changed(part: str, value: Callable[[Any], Any]) -> Callable[[Tensors], Any]:
    return lambda t: t.update({f"a.{part}": value(t[f"a.{part}"])})


BROKEN: dict[str, tuple[str, Callable[[Tensors], Any], str]] = {
    "no zeros": ("gptq zeros", without("qzeros"), "part 'a.qzeros' is missing"),
    "no scales": ("awq 128", without("scales"), "part 'a.scales' is missing"),
    "no shape": ("ct zeros", without("weight_shape"), "'a.weight_shape' is missing"),
    "no weight_scale": ("ct zeros", without("weight_scale"), "'a.weight_scale' is missing"),
    "stored twice": (
        "gptq 128",
        lambda t: t.update({"a.weight": np.zeros((N, K), np.float32)}),
        "stored twice",
    ),
    "codes of floats": (
        "gptq 128",
        changed("qweight", lambda a: a.astype(np.float32)),
        "'a.qweight': expected i32 or u32, found f32",
    ),
    "codes in one dimension": (
        "awq 128",
        changed("qweight", lambda a: a.reshape(-1)),
        "expected two dimensions, none empty",
    ),
    "no codes": ("gptq 128", changed("qweight", lambda a: a[:0]), "none empty, found [0, 40]"),
    "other n": (
        "gptq 128",
        changed("scales", lambda a: a[:, :-1]),
        "'a.scales': expected shape [groups, 40], found [2, 39]",
    ),
    "other n in rows": (
        "ct zeros",
        changed("weight_scale", lambda a: a[:-1]),
        "expected shape [40, groups], found [39, 2]",
    ),
    "other groups": (
        "awq 64",
        changed("scales", lambda a: a[:2]),
        "expected one scale per group of 64 in 256 columns, found 2 groups",
    ),
    "no groups": ("gptq 128", changed("scales", lambda a: a[:0]), "expected shape [groups, 40]"),
    "zeros of another shape": (
        "gptq zeros",
        changed("qzeros", lambda a: a[:, :-1]),
        "'a.qzeros': expected shape [2, 5], found [2, 4]",
    ),
    "zeros of int8": (
        "awq 128",
        changed("qzeros", lambda a: a.astype(np.int8)),
        "'a.qzeros': expected i32 or u32, found i8",
    ),
    "packed zeros of another shape": (
        "ct zeros",
        changed("weight_zero_point", lambda a: a.T.copy()),
        "'a.weight_zero_point': expected shape [5, 2], found [2, 5]",
    ),
    "int8 zeros of another shape": (
        "ct int8 zeros",
        changed("weight_zero_point", lambda a: a[:5]),
        "expected shape [40, 4], found [5, 4]",
    ),
    "short g_idx": (
        "gptq desc_act",
        changed("g_idx", lambda a: a[:-1]),
        "'a.g_idx': expected shape [256], found [255]",
    ),
    "g_idx too high": (
        "gptq desc_act",
        changed("g_idx", lambda a: a + 1),
        "'a.g_idx': expected groups 0..1, found 1..2",
    ),
    "g_idx negative": ("gptq desc_act", changed("g_idx", lambda a: a - 1), "found -1..0"),
    "g_idx of int64": (
        "ct g_idx",
        changed("weight_g_idx", lambda a: a.astype(np.int64)),
        "'a.weight_g_idx': expected i32, found i64",
    ),
    "another shape": (
        "ct zeros",
        changed("weight_shape", lambda a: a * 2),
        "the size of 40 rows of 32 words of 4-bit weights, found 80 x 512",
    ),
    "a negative shape": ("ct zeros", changed("weight_shape", lambda a: -a), "found -40 x -256"),
    "a shape of three": (
        "ct zeros",
        changed("weight_shape", lambda a: np.append(a, 1)),
        "'a.weight_shape': expected shape [2], found [3]",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_parts_that_do_not_fit(broken: str, tmp_path: Path) -> None:
    name, damage, message = BROKEN[broken]
    path, x = folder_of(tmp_path, name)
    method, _, layout, _ = CASES[name]
    tensors = {f"a.{p}": t for p, t in tensors_of(method, x, **layout).items()}
    damage(tensors)
    write_folder(path, json.loads((path / "config.json").read_text("utf-8")), tensors)
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError) as caught:
        WeightReader(checkpoint, memory="small")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.tensor is not None


def ct_with(**weights: Any) -> dict[str, Any]:
    config = config_of(CT)
    config["config_groups"]["group_0"]["weights"] |= weights
    return config


CONFIGS: dict[str, tuple[Any, str]] = {
    "a list": ([], "expected an object, got a list"),
    "no method": ({}, "quant_method None is not supported; supported: gptq, awq, compressed-t"),
    "another method": ({"quant_method": "hqq"}, "quant_method 'hqq' is not supported"),
    "gptq 3 bits": (config_of(GPTQ, bits=3), "bits 3 is not supported; supported: 4, 8"),
    "gptq bits of text": (config_of(GPTQ, bits="4"), "bits '4' is not supported"),
    "gptq marlin": (config_of(GPTQ, checkpoint_format="marlin"), "'marlin' is not supported"),
    "gptq old marlin": (config_of(GPTQ, is_marlin_format=True), "is_marlin_format True"),
    "gptq pack": (config_of(GPTQ, pack_dtype="int64"), "pack_dtype 'int64'"),
    "gptq group": (config_of(GPTQ, group_size=0), "group_size: expected -1 (whole rows) or"),
    "gptq group of text": (config_of(GPTQ, group_size="x"), "got 'x'"),
    "awq gemv": (config_of(AWQ, version="gemv"), "version 'gemv' is not supported; supported: gem"),
    "awq version": (config_of(AWQ, version=3), "version 3 is not supported"),
    "awq 8 bits": (config_of(AWQ, bits=8), "bits 8 is not supported; supported: 4"),
    "awq no group": (config_of(AWQ, group_size=None), "group_size: expected -1"),
    "ct format": (config_of(CT, format="float-quantized"), "format 'float-quantized' is not"),
    "ct no groups": (config_of(CT, config_groups={}), "config_groups: expected a non-empty"),
    "ct odd group": (config_of(CT, config_groups={"g": 3}), "config_groups 'g': expected weights"),
    "ct sparse": (config_of(CT, sparsity_config={"format": "sparse-24"}), "sparsity_config: not"),
    "ct rotated": (config_of(CT, transform_config={"config_groups": {}}), "transform_config: not"),
    "ct floats": (ct_with(type="float"), "weights type 'float'"),
    "ct 3 bits": (ct_with(num_bits=3), "num_bits 3 is not supported"),
    "ct blocks": (ct_with(strategy="block"), "strategy 'block' is not supported"),
    "ct no size": (ct_with(group_size=None), "group_size: expected -1"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_are_refused(name: str, tmp_path: Path) -> None:
    quantization, message = CONFIGS[name]
    path = write_folder(
        tmp_path, {"quantization_config": quantization}, {"v": np.zeros(3, np.float32)}
    )
    refused = pytest.raises(CheckpointError, match=re.escape(message))
    with open_checkpoint(path) as checkpoint, refused as caught:
        WeightReader(checkpoint, memory="small")
    assert caught.value.file == str(path / "config.json")


def test_zero_points_that_float16_products_hold(tmp_path: Path) -> None:
    """Scales that are powers of two: -scale * zero is exact, so eight bits and a minimum do."""
    x = known_weight(N, K, bits=8)
    x.scales[:] = rounded(np.exp2(np.floor(np.log2(x.scales))), "float16")
    tensors = {f"a.{p}": t for p, t in tensors_of(GPTQ, x).items()}
    path = write_folder(tmp_path, {"quantization_config": config_of(GPTQ, bits=8)}, tensors)
    with open_checkpoint(path) as checkpoint:
        got = WeightReader(checkpoint, memory="small").linear("a.weight", N, K).matrix
    assert got.format == "q8g32a"
    assert np.array_equal(got.dequantize(0, N), x.values())
