"""Fuzzing of the decoders: a damaged GGUF block, GPTQ, AWQ or compressed-tensors weight is packed
soundly or refused, and nothing else.

`fuzzing` says how to run more cases.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import CASES, START, Tally, change_value, mutants, no_hang  # noqa: F401
from ggml_packer import random_tensor
from gguf_writer import write_gguf
from int_packer import config_of, known_weight, tensors_of, write_folder

from slmq.checkpoint import open_checkpoint
from slmq.checkpoint.foreign.weight import foreign_weights
from slmq.errors import CheckpointError
from slmq.weights.reader import WeightReader

pytestmark = pytest.mark.usefixtures("no_hang")
N, K = 8, 64


def load_every_weight(path: Path) -> str:
    """Open, decode and pack every weight that needs decoding; "" or why it was refused."""
    try:
        with open_checkpoint(path) as checkpoint:
            reader = WeightReader(checkpoint, memory="small")
            for name, weight in foreign_weights(checkpoint).items():
                matrix = reader.linear(name, *weight.info.shape).matrix
                assert np.isfinite(matrix.dequantize(0, matrix.n)).all()
    except CheckpointError as error:
        return error.message
    return ""


@pytest.fixture
def tally() -> Tally:
    return Tally(load_every_weight)


def test_damaged_blocks(tmp_path: Path, tally: Tally) -> None:
    rng = np.random.default_rng(3)
    kinds = ("q4_k", "q6_k", "q5_0", "iq4_nl")
    tensors = {kind: (random_tensor(kind, 2, 256, rng), kind) for kind in kinds}
    path = write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama"}, tensors)
    assert not load_every_weight(path)
    for data in mutants(path.read_bytes(), CASES // 2, "blocks"):
        path.write_bytes(data)
        tally.run(path)
    assert tally.outcomes[True] > CASES // 20
    assert tally.outcomes[False] > CASES // 20
    assert len(tally.reasons) >= 5, tally.reasons


METHODS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gptq": ("gptq", {"desc_act": True}, {}),
    "awq": ("awq", {}, {}),
    "compressed-tensors": ("compressed-tensors", {"desc_act": True}, {"symmetric": False}),
}


def folder_of(path: Path, name: str) -> Path:
    method, options, layout = METHODS[name]
    x = known_weight(N, K, group_size=32, **options)
    tensors = {f"a.{part}": t for part, t in tensors_of(method, x, **layout).items()}
    quantization = config_of(method, group_size=32)
    return write_folder(path, {"quantization_config": quantization}, tensors)


@pytest.mark.parametrize("name", METHODS)
def test_damaged_words(name: str, tmp_path: Path, tally: Tally) -> None:
    """Damage in the bytes: codes, scales, groups and shapes as much as the header."""
    path = folder_of(tmp_path, name)
    file = path / "model.safetensors"
    assert not load_every_weight(path)
    for data in mutants(file.read_bytes(), CASES // 4, f"words {name}"):
        file.write_bytes(data)
        tally.run(path)
    assert tally.outcomes[True] > 0
    assert tally.outcomes[False] > CASES // 20


@pytest.mark.parametrize("name", METHODS)
def test_wrong_values_in_header_and_config(name: str, tmp_path: Path, tally: Tally) -> None:
    """Both stay JSON, and tensors stay within the file where the damage lets them."""
    path = folder_of(tmp_path, name)
    file, config_file = path / "model.safetensors", path / "config.json"
    whole, config_text = file.read_bytes(), config_file.read_text("utf-8")
    begin = 8 + struct.unpack_from("<Q", whole)[0]
    for case in range(START, START + CASES // 2):
        rng = random.Random(f"header {name}:{case}")
        header, config = json.loads(whole[8:begin]), json.loads(config_text)
        if rng.random() < 0.5:
            change_value(config["quantization_config"], rng)
        else:
            swap_shape(header, rng)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + whole[begin:])
        config_file.write_text(json.dumps(config), "utf-8")
        tally.run(path)
    assert tally.outcomes[True] > 0
    assert len(tally.reasons) >= 8, tally.reasons


def swap_shape(header: dict[str, Any], rng: random.Random) -> None:
    """Give a tensor another name, type or shape of the same bytes."""
    name = rng.choice(list(header))
    entry = header[name]
    kind = rng.randrange(4)
    if kind == 0:
        header[rng.choice(["b.qweight", "a.weight", "a.g_idx", "x"])] = header.pop(name)
    elif kind == 1:
        same = {"I32": ["F32", "U32"], "F16": ["BF16", "I16"], "I64": ["F64", "U64"]}
        entry["dtype"] = rng.choice(same[entry["dtype"]])
    elif kind == 2:
        entry["shape"] = entry["shape"][::-1]
    else:
        size = int(np.prod(entry["shape"]))
        rows = rng.choice([d for d in range(1, size + 1) if size % d == 0])
        entry["shape"] = [rows, size // rows]
