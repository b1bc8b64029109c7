"""Writes a GGUF file with the sizes of a published model and random weights.

    python benchmarks/random_gguf.py tinyllama-1.1b q4_0 model.gguf

LFM2 and Qwen3.5, whose layers have states, are written as what they are; all others as a Llama of
their sizes, which every engine knows. In q4_0, q4_1 and q8_0 every matrix, embedding and head
included, is of that type (as `llama-quantize --pure` does); q4_k_m is llama.cpp's mix of Q4_K and
Q6_K. Norms are ones, and the tokenizer is one of bytes filled up to the vocabulary of the shape:
slmq, llama.cpp and OpenVINO GenAI load the file. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from random_blocks import BLOCKS, random_pool
from random_stateful import STATEFUL, StatefulShape

from slmq.speed.shapes import SHAPES, shape_named

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = [
    "FORMATS",
    "Shape",
    "Sizes",
    "file_bytes",
    "llama_shape",
    "own_shape",
    "write_random_gguf",
]

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

RMS_EPS = 1e-5
ROPE_BASE = 10000.0
NORMAL, CONTROL = 1, 3  # kinds of tokens
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class Sizes(Protocol):
    """A model that can be written."""

    @property
    def architecture(self) -> str:
        """Its name in GGUF files."""

    @property
    def vocab(self) -> int:
        """Tokens."""

    @property
    def layers(self) -> int:
        """Blocks."""

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name and (outputs, inputs) of every matrix, as llama.cpp names them."""

    def vectors(self) -> Iterator[tuple[str, F32]]:
        """Name and values of what stays float32."""

    def add_metadata(self, writer: GGUFWriter) -> None:
        """What the file says of the sizes."""


class Shape(NamedTuple):
    """Sizes of a Llama: both sides of a comparison know that family."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    positions: int

    @property
    def architecture(self) -> str:
        """Its name in GGUF files."""
        return "llama"

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name and (outputs, inputs) of every matrix, as llama.cpp names them."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "token_embd.weight", (self.vocab, self.hidden)
        if not self.tied:
            yield "output.weight", (self.vocab, self.hidden)
        for i in range(self.layers):
            yield f"blk.{i}.attn_q.weight", (q, self.hidden)
            yield f"blk.{i}.attn_k.weight", (kv, self.hidden)
            yield f"blk.{i}.attn_v.weight", (kv, self.hidden)
            yield f"blk.{i}.attn_output.weight", (self.hidden, q)
            yield f"blk.{i}.ffn_gate.weight", (self.inner, self.hidden)
            yield f"blk.{i}.ffn_up.weight", (self.inner, self.hidden)
            yield f"blk.{i}.ffn_down.weight", (self.hidden, self.inner)

    def vectors(self) -> Iterator[tuple[str, F32]]:
        """Norms of ones."""
        ones = np.ones(self.hidden, np.float32)
        yield "output_norm.weight", ones
        for i in range(self.layers):
            yield f"blk.{i}.attn_norm.weight", ones
            yield f"blk.{i}.ffn_norm.weight", ones

    def add_metadata(self, writer: GGUFWriter) -> None:
        """What the file says of the sizes."""
        writer.add_vocab_size(self.vocab)
        writer.add_context_length(self.positions)
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self.inner)
        writer.add_block_count(self.layers)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_rope_freq_base(ROPE_BASE)
        writer.add_layer_norm_rms_eps(RMS_EPS)


def own_shape(name: str) -> Sizes:
    """The sizes of a published model: its own if its layers have states, else those of a Llama.

    Raises
    ------
    ValueError
        As `llama_shape`.
    """
    config = shape_named(name).config
    return StatefulShape(config) if config["model_type"] in STATEFUL else llama_shape(name)


def llama_shape(name: str) -> Shape:
    """The sizes of a published model, whatever its family.

    Raises
    ------
    ValueError
        For an unknown name, a mixture of experts, or a model whose MLP has no gate.
    """
    shape = shape_named(name)
    config = shape.config
    ungated = config.get("hidden_act") in ("relu2", "xielu") and config["model_type"] != "bitnet"
    if "num_key_value_heads" not in config or config.get("num_experts_per_tok") or ungated:
        raise ValueError(f"{shape.name} has no sizes of a Llama; its family is its own")
    heads = config["num_attention_heads"]
    return Shape(
        config["vocab_size"],
        config["hidden_size"],
        config["intermediate_size"],
        config["num_hidden_layers"],
        heads,
        config["num_key_value_heads"],
        config.get("head_dim", config["hidden_size"] // heads),
        config["tie_word_embeddings"],
        config["max_position_embeddings"],
    )


class Mix(NamedTuple):
    """Which type each matrix has, and llama.cpp's number for the whole."""

    file_type: int
    type_of: Callable[[str, Sizes], str]


def all_of(kind: str) -> Callable[[str, Sizes], str]:
    """Every matrix of one type."""
    return lambda _name, _shape: kind


def q4_k_m(name: str, shape: Sizes) -> str:
    """llama.cpp's choice: Q6_K for the head, and in half of the layers for v and down.

    Those are the first and the last eighth of the layers and of the others every third.
    """
    if name == ("token_embd.weight" if shape.tied else "output.weight"):
        return "q6_k"
    _, _, rest = name.partition("blk.")
    layer, _, matrix = rest.partition(".")
    if matrix not in ("attn_v.weight", "ffn_down.weight"):
        return "q4_k"
    i, n = int(layer), shape.layers
    more_bits = i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
    return "q6_k" if more_bits else "q4_k"


FORMATS = {
    "q4_0": Mix(2, all_of("q4_0")),
    "q4_1": Mix(3, all_of("q4_1")),
    "q8_0": Mix(7, all_of("q8_0")),
    "q4_k_m": Mix(15, q4_k_m),
}


def write_random_gguf(path: Path, shape: Sizes, weight_format: str, *, seed: int = 0) -> Path:
    """Writes the file, whole or not at all, and returns its path.

    Parameters
    ----------
    path : Path
        Replaced when it is there; its folder must exist.
    shape : Shape or StatefulShape
        `own_shape` has the published ones.
    weight_format : {"q4_0", "q4_1", "q8_0", "q4_k_m"}
    seed : int
        Other seeds give other weights.

    Raises
    ------
    ValueError
        For another format, or sizes that are no whole blocks.
    OSError
        If the file cannot be written; says so before writing when the disk is too full.
    ImportError
        Without the `gguf` package.
    """
    import gguf

    if weight_format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {weight_format!r}")
    for name, _, k, kind in typed_matrices(shape, weight_format):
        if k % BLOCKS[kind].columns:
            expected = f"inputs in groups of {BLOCKS[kind].columns}"
            raise ValueError(f"{name}: expected {expected}, got {k}")
    need, free = file_bytes(shape, weight_format), shutil.disk_usage(path.parent).free
    if need > free:
        raise OSError(f"{path} needs {need / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free")
    part = path.with_name(path.name + ".part")
    try:
        writer = gguf.GGUFWriter(part, shape.architecture)
        _add_metadata(writer, shape, weight_format)
        _add_tensor_infos(writer, shape, weight_format)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with part.open("ab") as file:
            _write_tensors(file, shape, weight_format, seed, writer.data_alignment)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def file_bytes(shape: Sizes, weight_format: str) -> int:
    """Bytes of the weights: those of the file but for its header."""
    return sum(n * row_bytes(k, kind) for _, n, k, kind in typed_matrices(shape, weight_format))


def row_bytes(k: int, kind: str) -> int:
    """Bytes of `k` weights."""
    return k // BLOCKS[kind].columns * BLOCKS[kind].nbytes


def typed_matrices(shape: Sizes, weight_format: str) -> Iterator[tuple[str, int, int, str]]:
    """Name, outputs, inputs and type of every matrix."""
    type_of = FORMATS[weight_format].type_of
    for name, (n, k) in shape.matrices():
        yield name, n, k, type_of(name, shape)


def _add_metadata(writer: GGUFWriter, shape: Sizes, weight_format: str) -> None:
    writer.add_name(f"random weights, {weight_format}")
    writer.add_file_type(FORMATS[weight_format].file_type)
    writer.add_quantization_version(2)
    shape.add_metadata(writer)
    tokens, kinds, merges = vocabulary(shape.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)


def vocabulary(size: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens, their kinds, and the merges: special tokens, bytes, one merge, and filling.

    Raises
    ------
    ValueError
        If `size` has no room for all but the filling.
    """
    known = [(name, CONTROL) for name in SPECIALS]
    known += [(letter, NORMAL) for letter in byte_alphabet()]
    known.append(("th", NORMAL))  # readers want to see a merge
    if size < len(known):
        raise ValueError(f"vocabulary: expected at least {len(known)} tokens, got {size}")
    # No merges lead to these: text never becomes them, ids do.
    known += [(f"filling{i}", NORMAL) for i in range(size - len(known))]
    tokens, kinds = zip(*known, strict=True)
    return list(tokens), list(kinds), ["t h"]


def byte_alphabet() -> list[str]:
    """The letter of each byte in byte-level vocabularies: itself where it prints, as in GPT-2."""
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, others = [], 0
    for byte in range(256):
        letters.append(chr(byte if byte in printed else 256 + others))
        others += byte not in printed
    return letters


def _add_tensor_infos(writer: GGUFWriter, shape: Sizes, weight_format: str) -> None:
    import gguf

    for name, n, k, kind in typed_matrices(shape, weight_format):
        row, stored = row_bytes(k, kind), gguf.GGMLQuantizationType[kind.upper()]
        writer.add_tensor_info(name, (n, row), np.dtype(np.uint8), n * row, stored)
    for name, values in shape.vectors():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)


def _write_tensors(
    file: IO[bytes], shape: Sizes, weight_format: str, seed: int, alignment: int
) -> None:
    """Appends the data in the order of the infos, a pool of random blocks at a time."""
    pad_to(file, alignment)
    pools: dict[str, U8] = {}
    for name, n, k, kind in typed_matrices(shape, weight_format):
        if kind not in pools:
            pools[kind] = random_pool(kind, np.random.default_rng(seed))
        pool = pools[kind]
        # Each matrix begins elsewhere in the pool, so that no two are the same.
        at = zlib.crc32(name.encode()) % len(pool)
        left = n * k // BLOCKS[kind].columns
        while left:
            part = pool[at : at + left]
            file.write(part.data)
            left -= len(part)
            at = 0
        pad_to(file, alignment)
    for _, values in shape.vectors():
        file.write(values.data)
        pad_to(file, alignment)


def pad_to(file: IO[bytes], alignment: int) -> None:
    """Appends zeros up to a multiple of `alignment`."""
    file.write(bytes(-file.seek(0, os.SEEK_END) % alignment))


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("shape", help=", ".join(SHAPES))
    parser.add_argument("format", help=", ".join(FORMATS))
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        path = write_random_gguf(args.path, own_shape(args.shape), args.format, seed=args.seed)
    except (ImportError, OSError, ValueError) as error:
        print(f"random_gguf: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
