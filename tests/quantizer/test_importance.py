"""Importance matrices: what a file says decides how columns are rounded, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from family_files import to_gguf
from gguf_writer import write_gguf
from golden import GOLDENS

import slmq
from slmq.checkpoint import open_checkpoint
from slmq.formats import FORMATS, unpack
from slmq.quantizer.grids import pack_rounded
from slmq.quantizer.methods import round_searched

F32 = npt.NDArray[np.float32]
SOURCE = GOLDENS / "llama" / "biases"
KIND = {"general.architecture": "llama", "general.type": "imatrix"}
GATE = "model.layers.0.mlp.gate_proj.weight"


def sums_of(k: int, seed: int) -> F32:
    return np.random.default_rng(seed).lognormal(0, 2, k).astype(np.float32)


def weight(folder: Path, name: str) -> F32:
    with open_checkpoint(folder) as checkpoint:
        info, raw = checkpoint.tensors[name], checkpoint.read(name)
    kind = {"f32": "<f4", "f16": "<f2"}[info.dtype]
    return raw.view(kind).reshape(info.shape).astype(np.float32)


def importance_file(path: Path, **changes: Any) -> Path:
    """Of the gate of the first layer, and of a matrix that the model lacks."""
    k = weight(SOURCE, GATE).shape[1]
    tensors = {
        "blk.0.ffn_gate.weight.in_sum2": sums_of(k, 1),
        "blk.0.ffn_gate.weight.counts": np.float32([512]),
        "blk.99.ffn_gate.weight.in_sum2": sums_of(k, 2),
        "blk.99.ffn_gate.weight.counts": np.float32([512]),
    }
    return write_gguf(path, KIND, tensors | changes)


def stored(folder: Path, name: str) -> npt.NDArray[np.uint8]:
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.read(name).copy()


@pytest.mark.parametrize("source", ["safetensors", "gguf"])
def test_columns_are_rounded_by_their_importance(source: str, tmp_path: Path) -> None:
    found = SOURCE if source == "safetensors" else to_gguf(SOURCE, tmp_path / "m.gguf")
    w = weight(SOURCE, GATE)
    file = importance_file(tmp_path / "imatrix.gguf")
    made = slmq.quantize(found, tmp_path / "a", format="q4g32s", imatrix=file)
    mean = sums_of(w.shape[1], 1).astype(np.float64) / 512
    importance = (mean + 0.01 * mean.sum() / len(mean)).astype(np.float32)
    want = pack_rounded(round_searched(w, "q4g32s", importance), 1).packed
    plain = pack_rounded(round_searched(w, "q4g32s"), 1).packed
    assert np.array_equal(stored(made.path, GATE), want)
    assert not np.array_equal(want, plain)
    methods = {report.name: report.method for report in made.tensors}
    assert [name for name, method in methods.items() if method == "weighted"] == [GATE]
    errors = [
        float((np.square(w - unpack(packed, *w.shape, FORMATS["q4g32s"])) * importance).sum())
        for packed in (want, plain)
    ]
    assert errors[0] < 0.9 * errors[1]


def test_the_same_bytes_again_and_said_where_from(
    tmp_path: Path, empty_cache: Callable[[], None]
) -> None:
    file = importance_file(tmp_path / "imatrix.gguf")
    folders = []
    for n in (1, 3):
        empty_cache()
        made = slmq.quantize(SOURCE, tmp_path / f"t{n}", bits=5.5, imatrix=file, n_threads=n)
        folders.append(made.path)
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1
    said = json.loads((folders[0] / "config.json").read_text("utf-8"))["slmq"]
    assert re.fullmatch("[0-9a-f]{64}", said["imatrix_sha256"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blk.0.ffn_gate.weight.in_sum2": np.ones(7, np.float32)}, "found 7 and 1: is it of anot"),
        ({"blk.0.ffn_gate.weight.counts": np.float32([1, 2])}, "and one count, found .* and 2"),
        ({"blk.0.ffn_gate.weight.counts": np.float32([0])}, "at least one token"),
        ({"blk.0.ffn_gate.weight.counts": np.float16([1])}, "counts as float32, found f16"),
    ],
    ids=str,
)
def test_what_no_importance_is(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = importance_file(tmp_path / "imatrix.gguf", **changes)
    with pytest.raises(slmq.DataError, match=message):
        slmq.quantize(SOURCE, tmp_path / "a", imatrix=file)
    assert not (tmp_path / "a").exists()


def test_files_that_are_something_else(tmp_path: Path) -> None:
    model = to_gguf(SOURCE, tmp_path / "m.gguf")
    text = tmp_path / "imatrix.dat"
    text.write_bytes(b"\x01\x00\x00\x00old")
    nobody = write_gguf(tmp_path / "o.gguf", KIND, {"x.in_sum2": np.ones(4, np.float32)})
    for file, message in (
        (model, "of type 'imatrix', found a model"),
        (text, "llama-imatrix --output-format gguf writes one"),
        (tmp_path / "none.gguf", "expected an importance matrix"),
        (nobody, "speaks of no matrix of"),
    ):
        with pytest.raises(slmq.DataError, match=message):
            slmq.quantize(SOURCE, tmp_path / "a", imatrix=file)


def stack_file(path: Path, golden: Path, stack: str, **changes: Any) -> Path:
    """Of the experts of layer 1; no token went to the last one."""
    with open_checkpoint(golden) as checkpoint:
        config = checkpoint.metadata
    experts = config.get("num_local_experts") or config["num_experts"]
    k = config["hidden_size"] if stack != "down" else config["moe_intermediate_size"]
    sums = np.stack([sums_of(k, i) for i in range(experts)])
    counts = np.arange(experts, 0, -1, dtype=np.float32)[:, None] - 1
    name = f"blk.1.ffn_{stack}_exps.weight"
    tensors = {f"{name}.in_sum2": sums * (counts > 0), f"{name}.counts": counts}
    return write_gguf(path, KIND, tensors | changes)


@pytest.mark.parametrize(
    ("golden", "stack", "name"),
    [
        ("qwen3_moe/two_of_eight", "down", "model.layers.1.mlp.experts.{}.down_proj.weight"),
        ("olmoe/two_of_eight", "up", "model.layers.1.mlp.experts.{}.up_proj.weight"),
        (
            "granitemoe/factors",
            "up",
            "model.layers.1.block_sparse_moe.input_linear.weight[{}][24:48]",
        ),
        ("gpt_oss/sinks_and_windows", "gate", "model.layers.1.mlp.experts.gate_up_proj[{}][0:24]"),
    ],
)
def test_experts_are_rounded_by_their_own(
    golden: str, stack: str, name: str, tmp_path: Path
) -> None:
    """One that no token went to by what all the others have seen."""
    folder = GOLDENS / golden
    file = stack_file(tmp_path / "imatrix.gguf", folder, stack)
    made = slmq.quantize(folder, tmp_path / "a", format="q4g32s", imatrix=file)
    weighted = [report.name for report in made.tensors if report.method == "weighted"]
    assert weighted == [name.format(i) for i in range(8)]
    plain = slmq.convert(folder, tmp_path / "plain")
    with open_checkpoint(file) as checkpoint:
        sums, counts = (
            np.float64(checkpoint.read(t).view("<f4").reshape(8, -1))
            for t in sorted(checkpoint.tensors, reverse=True)
        )
    for expert in (0, 3, 7):
        with open_checkpoint(plain) as checkpoint:
            info = checkpoint.tensors[name.format(expert)]
            raw = checkpoint.read(info.name)
        w = unpack(raw, *info.shape, FORMATS[info.dtype])
        mean = sums[expert] / counts[expert] if expert < 7 else sums.sum(0) / counts.sum()
        importance = (mean + 0.01 * mean.sum() / len(mean)).astype(np.float32)
        want = pack_rounded(round_searched(w, "q4g32s", importance), 1).packed
        assert np.array_equal(stored(made.path, info.name), want), expert


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("in_sum2", np.ones((7, 24), np.float32), "24 sums of squares and one count an expert"),
        ("counts", np.ones((9, 1), np.float32), "one count an expert, found 192 and 9"),
        ("counts", np.zeros((8, 1), np.float32), "at least one token"),
        ("counts", -np.ones((8, 1), np.float32), "at least one token"),
    ],
    ids=["fewer", "counts", "nobody", "negative"],
)
def test_stacks_that_are_none(part: str, value: Any, message: str, tmp_path: Path) -> None:
    folder, name = GOLDENS / "qwen3_moe" / "two_of_eight", "blk.1.ffn_down_exps.weight"
    file = stack_file(tmp_path / "imatrix.gguf", folder, "down", **{f"{name}.{part}": value})
    with pytest.raises(slmq.DataError, match=message):
        slmq.quantize(folder, tmp_path / "a", imatrix=file)


def test_settings_that_do_not_go_with_it(tmp_path: Path) -> None:
    file = importance_file(tmp_path / "imatrix.gguf")
    with pytest.raises(ValueError, match="got both; a text says more"):
        slmq.quantize(SOURCE, tmp_path / "a", imatrix=file, calibrate=file)
    with pytest.raises(ValueError, match="auto or weighted; got 'feedback'"):
        slmq.quantize(SOURCE, tmp_path / "a", imatrix=file, method="feedback")
