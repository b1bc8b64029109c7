"""Mutation fuzzing of the readers: a damaged file is read soundly or refused, and nothing else.

Sound files are flipped, cut, spliced and sprinkled with numbers that break careless arithmetic.
Whatever still opens has every tensor read to its last byte; `fuzzing` says how to run more cases.
"""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf_writer as gw
import numpy as np
import pytest
import safetensors
from fuzzing import (  # noqa: F401  (a fixture)
    CASES,
    INTERESTING,
    PEAK_BYTES,
    START,
    Tally,
    change_value,
    mutants,
    no_hang,
)
from safetensors.numpy import save

from slmq.checkpoint import PackedCheckpoint, open_checkpoint
from slmq.checkpoint.packed_folder import PackedTensor, packed_header
from slmq.errors import CheckpointError
from slmq.weights.placement import PackedFile

pytestmark = pytest.mark.usefixtures("no_hang")


# -- what is mutated -----------------------------------------------------------------------------


def gguf_seeds() -> dict[str, bytes]:
    strings = gw.array(gw.STRING, [gw.string(t) for t in (b"<s>", b"a", b"\xe2\x98", b"")])
    nested = gw.array(gw.ARRAY, [gw.array(gw.U16, [b"\1\0"]), gw.array(gw.BOOL, [b"\0", b"\1"])])
    keys = [
        gw.key(b"general.architecture", gw.STRING, gw.string(b"llama")),
        gw.key(b"general.alignment", gw.U32, gw.number(gw.U32, 32)),
        gw.key(b"f", gw.F32, gw.number(gw.F32, 0.5)),
        gw.key(b"b", gw.BOOL, b"\1"),
        gw.key(b"tokens", gw.ARRAY, strings),
        gw.key(b"nested", gw.ARRAY, nested),
        gw.key(b"split.count", gw.U16, gw.number(gw.U16, 1)),
    ]
    infos = [
        gw.tensor(b"a", [32, 2], 2, 0),
        gw.tensor(b"b", [8], 0, 64),
        gw.tensor(b"c", [2, 2, 2, 2], 1, 96),
    ]
    return {
        "full": gw.image(keys, infos, bytes(range(128))),
        "version_2": gw.image(keys[:2], infos, bytes(range(128)), version=2),
        "tensors": gw.image([], infos, bytes(range(128))),
        "keys": gw.image(keys),
    }


def safetensors_seeds() -> dict[str, bytes]:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "a": np.arange(8, dtype=np.float32).reshape(2, 4),
        "b": np.ones(3, np.float16),
        "c": np.zeros((0, 2), np.int64),
        "d": np.arange(5, dtype=np.uint8),
    }
    return {"full": save(arrays, {"format": "pt"}), "one": save({"a": arrays["a"]})}


def packed_seed() -> bytes:
    """A file of packed weights: every kind of tensor, and one of padding."""
    tensors = [
        PackedTensor("q4", "q4g32a", (33, 40)),
        PackedTensor("norm", "f32", (33,)),
        PackedTensor("f16", "f16", (3, 5)),
    ]
    sizes = [-(-tensor.nbytes // 64) * 64 for tensor in tensors]
    return packed_header(tensors) + bytes(sum(sizes))


def open_and_read(path: Path) -> str:
    """Open, read every byte of every tensor and close; "" or why the file was refused."""
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as error:
        return error.message
    with checkpoint:
        for name, info in checkpoint.tensors.items():
            raw = checkpoint.raw(name)
            assert raw.nbytes == info.nbytes
            assert int(np.sum(raw, dtype=np.uint64)) >= 0
            checkpoint.release(name)
        repr(checkpoint.metadata)
    return ""


@pytest.fixture
def tally() -> Iterator[Tally]:
    tracemalloc.start()
    yield Tally(open_and_read)
    tracemalloc.stop()


@pytest.mark.parametrize("seed", gguf_seeds())
def test_damaged_gguf(tmp_path: Path, tally: Tally, seed: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_seeds()[seed])
    assert not open_and_read(path)
    for data in mutants(gguf_seeds()[seed], CASES, f"gguf {seed}"):
        path.write_bytes(data)
        tally.run(path)
    tally.check(reasons=10)


@pytest.mark.parametrize("seed", gguf_seeds())
def test_gguf_with_a_hostile_number_at_every_offset(
    tmp_path: Path, tally: Tally, seed: str
) -> None:
    path, data = tmp_path / "x.gguf", gguf_seeds()[seed]
    for at in range(len(data) - 128):
        for value in (b"\xff" * 8, struct.pack("<Q", 1 << 61), b"\xff" * 4, bytes(8)):
            path.write_bytes(data[:at] + value + data[at + len(value) :])
            tally.run(path)
    assert tally.peak_bytes < PEAK_BYTES
    assert tally.outcomes[False] > len(data)


def run_beside_the_package(folder: Path, data: bytes, tally: Tally) -> None:
    """What we accept, the safetensors package accepts too, with the same bytes in each tensor."""
    (folder / "model.safetensors").write_bytes(data)
    if tally.run(folder):
        deserialize: Callable[[bytes], Any] = safetensors.deserialize
        theirs = {name: bytes(tensor["data"]) for name, tensor in deserialize(data)}
        with open_checkpoint(folder) as checkpoint:
            assert {name: checkpoint.raw(name).tobytes() for name in checkpoint.tensors} == theirs


@pytest.mark.parametrize("seed", safetensors_seeds())
def test_damaged_safetensors(tmp_path: Path, tally: Tally, seed: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    run_beside_the_package(tmp_path, safetensors_seeds()[seed], tally)
    assert tally.outcomes[True] == 1
    for data in mutants(safetensors_seeds()[seed], CASES, f"safetensors {seed}"):
        run_beside_the_package(tmp_path, data, tally)
    tally.check(reasons=10)


def read_packed(folder: Path) -> None:
    """Every packed matrix that is offered can be used to its last row, mapped and copied."""
    with open_checkpoint(folder) as checkpoint:
        assert isinstance(checkpoint, PackedCheckpoint)
        for memory in ("mmap", "small"):
            packed = PackedFile(checkpoint, memory, threads=1)
            for name, info in checkpoint.tensors.items():
                if len(info.shape) == 2:
                    matrix = packed.matrix(name)
                    assert matrix.packed.tobytes() == checkpoint.raw(name).tobytes()
                    assert matrix.dequantize(0, info.shape[0]).shape == info.shape


def packed_or_refused(folder: Path, data: bytes, tally: Tally) -> None:
    """A damaged mark makes it a plain safetensors file, which is sound as such."""
    (folder / "model.safetensors").write_bytes(data)
    if tally.run(folder):
        with open_checkpoint(folder) as checkpoint:
            packed = checkpoint.packed
        if packed:
            read_packed(folder)


def test_damaged_packed_weights(tmp_path: Path, tally: Tally) -> None:
    """Anywhere in the file, and more often in the header; tiles may hold any bits."""
    (tmp_path / "config.json").write_text("{}")
    whole = packed_seed()
    begin = 8 + struct.unpack_from("<Q", whole)[0]
    packed_or_refused(tmp_path, whole, tally)
    assert tally.outcomes[True] == 1
    for data in mutants(whole, CASES // 2, "native"):
        packed_or_refused(tmp_path, data, tally)
    for data in mutants(whole[:begin], CASES // 2, "native header"):
        packed_or_refused(tmp_path, data + whole[begin:], tally)
    tally.check(reasons=10)


def test_packed_weights_with_wrong_values(tmp_path: Path, tally: Tally) -> None:
    """The header stays JSON, and of the same length, so that the tags are what is checked."""
    (tmp_path / "config.json").write_text("{}")
    whole = packed_seed()
    begin = 8 + struct.unpack_from("<Q", whole)[0]
    for case in range(START, START + CASES):
        rng = random.Random(f"native values:{case}")
        header = json.loads(whole[8:begin])
        if rng.random() < 0.5:
            name = rng.choice(["q4", "norm", "f16", "slmq"])
            sizes = " ".join(str(rng.choice([33, 40, 3, 5, *INTERESTING])) for _ in range(2))
            header["__metadata__"][name] = f"{rng.choice(['q4g32a', 'q4g32s', 'f16'])} {sizes}"
        else:
            change_value(header, rng)
        text = json.dumps(header).encode()
        text = text.ljust(-(-(8 + len(text)) // 64) * 64 - 8)
        data = struct.pack("<Q", len(text)) + text + whole[begin:]
        packed_or_refused(tmp_path, data, tally)
    assert tally.peak_bytes < PEAK_BYTES
    assert tally.outcomes[True] > 0
    assert len(tally.reasons) >= 10, tally.reasons


@pytest.mark.parametrize("seed", safetensors_seeds())
def test_safetensors_with_wrong_values(tmp_path: Path, tally: Tally, seed: str) -> None:
    """The header stays JSON, so that the checks behind the parser see the damage."""
    (tmp_path / "config.json").write_text("{}")
    whole = safetensors_seeds()[seed]
    begin = 8 + struct.unpack_from("<Q", whole)[0]
    for case in range(START, START + CASES):
        rng = random.Random(f"values {seed}:{case}")
        header = json.loads(whole[8:begin])
        for _ in range(rng.choice([1, 1, 2, 3])):
            change_value(header, rng)
        text = json.dumps(header).encode()
        run_beside_the_package(tmp_path, struct.pack("<Q", len(text)) + text + whole[begin:], tally)
    assert tally.peak_bytes < PEAK_BYTES
    assert tally.outcomes[True] > 0
    assert len(tally.reasons) >= 8, tally.reasons


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_damaged_json_beside_the_weights(tmp_path: Path, tally: Tally, name: str) -> None:
    (tmp_path / "shard.safetensors").write_bytes(save({"a": np.ones(2, np.float32)}))
    texts = {
        "config.json": {"model_type": "llama", "rope_scaling": {"factor": 8.0}, "list": [1, None]},
        "model.safetensors.index.json": {
            "metadata": {"total_size": 8, "made_by": "a name long enough to be hit without harm"},
            "weight_map": {"a": "shard.safetensors"},
        },
    }
    for other, content in texts.items():
        (tmp_path / other).write_text(json.dumps(content))
    assert not open_and_read(tmp_path)
    for data in mutants(json.dumps(texts[name]).encode(), CASES, name):
        (tmp_path / name).write_bytes(data)
        tally.run(tmp_path)
    tally.check(reasons=5)
