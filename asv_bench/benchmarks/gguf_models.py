"""GGUF files with the shapes of known models and random weights: no download, any commit.

A file is the one way to make a model that every commit has in common. Blocks repeat every 16 MiB:
speed does not depend on the values, and drawing more of them takes longer than all the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

PATTERN_BYTES = 16 << 20
WEIGHT_STD = 0.02  # keeps activations in range through any number of layers
ALIGNMENT = 32
U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5  # value types of a GGUF key
FLOAT = 0  # tensor type of the norms


@dataclass(frozen=True)
class Shape:
    """Dimensions of a Llama."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    positions: int

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """Name, outputs and inputs of every matrix, in the order of the file."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "token_embd", self.vocab, self.hidden
        for i in range(self.layers):
            yield f"blk.{i}.attn_q", q, self.hidden
            yield f"blk.{i}.attn_k", kv, self.hidden
            yield f"blk.{i}.attn_v", kv, self.hidden
            yield f"blk.{i}.attn_output", self.hidden, q
            yield f"blk.{i}.ffn_gate", self.inner, self.hidden
            yield f"blk.{i}.ffn_up", self.inner, self.hidden
            yield f"blk.{i}.ffn_down", self.hidden, self.inner
        if not self.tied:
            yield "output", self.vocab, self.hidden

    def head_macs(self) -> int:
        """Multiply-accumulates of one row's logits."""
        return self.vocab * self.hidden

    def layer_macs(self) -> int:
        """Multiply-accumulates of one token in all layers, attention apart."""
        return sum(n * k for name, n, k in self.matrices() if name.startswith("blk."))


# The first is SmolLM2-135M whole. The second is TinyLlama-1.1B with 4 of its 22 layers and a
# vocabulary cut alike, so that the head keeps its share. The third is SmolLM2's block, for long
# contexts: 8 layers of cache are beyond the caches of the CPU, and are filled in seconds.
SHAPES = {
    "smollm2-135m": Shape(49152, 576, 1536, 30, 9, 3, 64, True, 8192),
    "tinyllama-cut": Shape(5824, 2048, 5632, 4, 32, 4, 64, False, 2048),
    "smollm2-cut": Shape(4096, 576, 1536, 8, 9, 3, 64, True, 32768),
}


@dataclass(frozen=True)
class Packing:
    """How a GGUF type stores 32 weights: its number, name in llama.cpp, bytes and layout."""

    number: int
    block_bytes: int
    has_min: bool
    levels: int


# By the names of slmq's formats, which keep these values bit for bit.
PACKINGS = {
    "q4g32s": Packing(2, 18, False, 16),
    "q4g32a": Packing(3, 20, True, 16),
    "q8g32s": Packing(8, 34, False, 255),
}


def weight_bytes(macs: int, weight_format: str) -> float:
    """Bytes of that many weights."""
    return macs * PACKINGS[weight_format].block_bytes / 32


def write_model(path: Path, shape: Shape, weight_format: str) -> Path:
    """Writes the file, unless it is there already; returns its path."""
    if path.exists():
        return path
    packing = PACKINGS[weight_format]
    pattern = _random_blocks(packing)
    tensors: list[tuple[str, tuple[int, ...], int]]
    tensors = [(f"{name}.weight", (n, k), packing.number) for name, n, k in shape.matrices()]
    tensors += [(f"{name}.weight", (shape.hidden,), FLOAT) for name in _norms(shape)]
    sizes = [
        int(np.prod(dims)) * 4 if kind == FLOAT else int(np.prod(dims)) // 32 * packing.block_bytes
        for _, dims, kind in tensors
    ]
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        _write_header(file, shape, tensors, sizes)
        for (_, _, kind), size in zip(tensors, sizes, strict=True):
            if kind == FLOAT:
                file.write(np.ones(size // 4, np.float32).tobytes())
            else:
                _write_pattern(file, pattern, size)
            file.write(bytes(-size % ALIGNMENT))
    part.rename(path)
    return path


def _norms(shape: Shape) -> Iterator[str]:
    for i in range(shape.layers):
        yield f"blk.{i}.attn_norm"
        yield f"blk.{i}.ffn_norm"
    yield "output_norm"


def _write_pattern(file: BinaryIO, pattern: npt.NDArray[np.uint8], size: int) -> None:
    for start in range(0, size, len(pattern)):
        file.write(pattern[: min(len(pattern), size - start)].tobytes())


def _write_header(
    file: BinaryIO,
    shape: Shape,
    tensors: list[tuple[str, tuple[int, ...], int]],
    sizes: list[int],
) -> None:
    keys = list(_keys(shape))
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys))
    offset = 0
    for (name, dims, kind), size in zip(tensors, sizes, strict=True):
        inner_first = dims[::-1]
        file.write(_string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *inner_first))
        file.write(struct.pack("<IQ", kind, offset))
        offset += size + -size % ALIGNMENT
    file.write(bytes(-file.tell() % ALIGNMENT))


def _keys(shape: Shape) -> Iterator[bytes]:
    numbers = {
        "block_count": shape.layers,
        "context_length": shape.positions,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.inner,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "rope.dimension_count": shape.head_dim,
        "vocab_size": shape.vocab,
    }
    tokens, merges = _vocabulary(shape.vocab)
    kinds = [1] * (len(tokens) - 1) + [3]  # the last one ends a text: a control token
    yield _key("general.architecture", STRING, _string("llama"))
    for name, value in numbers.items():
        yield _key(f"llama.{name}", U32, struct.pack("<I", value))
    yield _key("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5))
    yield _key("llama.rope.freq_base", F32, struct.pack("<f", 10000.0))
    yield _key("tokenizer.ggml.model", STRING, _string("gpt2"))
    yield _key("tokenizer.ggml.pre", STRING, _string("gpt-2"))
    yield _key("tokenizer.ggml.tokens", ARRAY, _array(STRING, [_string(t) for t in tokens]))
    yield _key(
        "tokenizer.ggml.token_type", ARRAY, _array(I32, [struct.pack("<i", k) for k in kinds])
    )
    yield _key("tokenizer.ggml.merges", ARRAY, _array(STRING, [_string(m) for m in merges]))
    yield _key("tokenizer.ggml.bos_token_id", U32, struct.pack("<I", len(tokens) - 1))
    yield _key("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", len(tokens) - 1))


def _vocabulary(count: int) -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE of that size: bytes, then pairs of bytes."""
    letters = [chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]  # as GPT-2 spells the others
    pairs = [left + right for left, right in product(letters, letters)]
    pairs = pairs[: max(0, count - len(letters) - 1)]
    return [*letters[: count - 1], *pairs, "<|end|>"], [f"{p[0]} {p[1]}" for p in pairs]


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _array(kind: int, items: list[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def _key(name: str, kind: int, payload: bytes) -> bytes:
    return _string(name) + struct.pack("<I", kind) + payload


def _random_blocks(packing: Packing) -> npt.NDArray[np.uint8]:
    """Blocks of 32 weights around 0, of a plausible size, the same in every process."""
    rng = np.random.default_rng(0)
    count = PATTERN_BYTES // packing.block_bytes
    blocks = rng.integers(0, 256, (count, packing.block_bytes), np.uint8)
    scale = rng.uniform(0.5, 1.5, (count, 1)) * WEIGHT_STD * np.sqrt(12) / packing.levels
    columns = np.concatenate([scale, -7.5 * scale], axis=1) if packing.has_min else scale
    stored = columns.astype(np.float16).view(np.uint8)
    blocks[:, : stored.shape[1]] = stored
    return blocks.reshape(-1)
