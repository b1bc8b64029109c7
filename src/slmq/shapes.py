"""Known architectures with random weights, built in memory: speed without a download.

What counts for speed is the shape, so every one is recorded through the forward pass of the Llama
family: the dimensions are those of the published configurations, the block is Llama's. For the
families that differ (StableLM: LayerNorm and partial rope; Gemma: GELU and scaled embeddings; Qwen
inside TinySwallow: biases; Phi-3 and Phi-4: fused weights) that is not the model itself but a
Llama of its size: the same matrices are read and multiplied. What such a model says is noise.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import cast

import numpy as np
import numpy.typing as npt

from slmq import _native
from slmq.engine import LoadedWeights
from slmq.errors import Error
from slmq.formats import PAIR_ROWS, Format, format_named
from slmq.memory import MemoryChoice
from slmq.models import llama
from slmq.runtime import available_memory_bytes
from slmq.weights import Linear, WeightReader

__all__ = ["SHAPES", "Shape", "random_blocks", "random_weights", "shape_named"]

SLAB_BYTES = 64 << 20
RANDOM_BYTES = 16 << 20
ALIGNMENT = 64
WEIGHT_STD = 0.02  # keeps activations in range through any number of layers


@dataclass(frozen=True)
class Shape:
    """Dimensions of a published model.

    Attributes
    ----------
    vocab, hidden, inner, layers, heads, kv_heads, head_dim : int
    tied : bool
        Whether the output head is the embedding.
    positions : int
        Positions that the model was made for.
    """

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    positions: int

    def config(self) -> dict[str, object]:
        """As a Hugging Face configuration of model type "llama"."""
        return {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.positions,
        }

    def packed_bytes(self, fmt: Format) -> int:
        """Bytes of all packed weights."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = [(q, self.hidden), (kv, self.hidden), (kv, self.hidden), (self.hidden, q)]
        layer += [(self.inner, self.hidden)] * 2 + [(self.hidden, self.inner)]
        matrices = layer * self.layers + [(self.vocab, self.hidden)] * (1 if self.tied else 2)
        return sum(_native.packed_bytes(fmt.name, n, k) for n, k in matrices)


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "smollm2-135m": Shape(49152, 576, 1536, 30, 9, 3, 64, True, 8192),
        "tinyllama-1.1b": Shape(32000, 2048, 5632, 22, 32, 4, 64, False, 2048),
        "tinyswallow-1.5b": Shape(151936, 1536, 8960, 28, 12, 2, 128, True, 32768),
        "stablelm-2-1.6b": Shape(100352, 2048, 5632, 24, 32, 32, 64, False, 4096),
        "gemma-2b": Shape(256000, 2048, 16384, 18, 8, 1, 256, True, 8192),
        "phi-3-mini": Shape(32064, 3072, 8192, 32, 32, 32, 96, False, 4096),
        "mistral-7b": Shape(32000, 4096, 14336, 32, 32, 8, 128, False, 32768),
        "phi-4": Shape(100352, 5120, 17920, 40, 40, 10, 128, False, 16384),
    }
)


def shape_named(name: str) -> Shape:
    """The shape of that name.

    Raises
    ------
    ValueError
        If there is none; names the nearest.
    """
    if name not in SHAPES:
        near = difflib.get_close_matches(name, SHAPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"shape: expected one of {', '.join(SHAPES)}, got {name!r}{hint}")
    return SHAPES[name]


def random_weights(name: str, weight_format: str = "q4g32s", *, seed: int = 0) -> LoadedWeights:
    """Weights of a shape, random, packed, the same for the same seed.

    Parameters
    ----------
    name : str
        One of `SHAPES`.
    weight_format : str
        A stored format ("q4g32s", "q4g32a", "q8g32s", "f16", "f32") or "int4", "int8".

    Raises
    ------
    ValueError
        For another shape or format.
    Error
        If the weights do not fit into the memory that is free.
    """
    shape, fmt = shape_named(name), format_named(weight_format)
    need, free = shape.packed_bytes(fmt), available_memory_bytes()
    if free is not None and need > free:
        raise Error(
            f"{name} in {fmt.name} needs {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are "
            f"free; choose a smaller shape or a format of fewer bits"
        )
    return build_weights(shape, fmt, seed)


def build_weights(shape: Shape, fmt: Format, seed: int = 0) -> LoadedWeights:
    """`random_weights` of dimensions that need no name."""
    config = llama.Config.from_dict(shape.config())
    source = _RandomReader(fmt, seed)
    # It has the methods that a family's load() uses, over no file.
    weights = llama.load(cast("WeightReader", source), config)
    return LoadedWeights(
        llama,
        config,
        weights,
        source.parameters,
        source.nbytes,
        {fmt.name: source.nbytes},
        MemoryChoice("huge", "random"),
    )


class _RandomReader:
    """Stands where a WeightReader stands, and makes up what it is asked for."""

    checkpoint = SimpleNamespace(kind="safetensors")

    def __init__(self, fmt: Format, seed: int) -> None:
        self._fmt = fmt
        self._random = random_blocks(fmt, np.random.default_rng(seed))
        self._slab = np.empty(0, np.uint8)
        self.nbytes = 0
        self.parameters = 0

    def has(self, _name: str) -> bool:
        return True

    def vector(self, _name: str, size: int) -> npt.NDArray[np.float32]:
        self.parameters += size
        return np.ones(size, np.float32)

    def linear(
        self, _name: str, n: int, k: int, *, bias: str | None = None, order: object = None
    ) -> Linear:
        if bias is not None or order is not None:
            raise ValueError("shapes have neither biases nor row orders")
        packed = self._take(_native.packed_bytes(self._fmt.name, n, k))
        for start in range(0, len(packed), len(self._random)):
            part = packed[start : start + len(self._random)]
            part[:] = self._random[: len(part)]
        self.nbytes += len(packed)
        self.parameters += n * k
        return Linear(_native.Matrix.from_packed(self._fmt.name, n, k, packed))

    def _take(self, count: int) -> npt.NDArray[np.uint8]:
        """Aligned bytes out of a large allocation, which NumPy asks 2 MiB pages for."""
        if len(self._slab) < count:
            slab = np.empty(max(count, SLAB_BYTES) + ALIGNMENT, np.uint8)
            self._slab = slab[-slab.ctypes.data % ALIGNMENT :]
        taken: npt.NDArray[np.uint8] = self._slab[:count]
        self._slab = self._slab[count + -count % ALIGNMENT :]
        return taken


def random_blocks(fmt: Format, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Some pairs of tiles with their scales: random weights around 0, of a plausible size.

    Returns
    -------
    uint8[bytes], about 16 MiB of whole pair-groups.
    """
    count = RANDOM_BYTES // fmt.pair_group_bytes
    if not fmt.quantized:
        dtype = np.float16 if fmt.name == "f16" else np.float32
        size = fmt.pair_group_bytes // np.dtype(dtype).itemsize
        values = rng.standard_normal((count, size), np.float32) * np.float32(WEIGHT_STD)
        stored: npt.NDArray[np.uint8] = values.astype(dtype).view(np.uint8)
        return stored.reshape(-1)
    blocks: npt.NDArray[np.uint8] = np.empty((count, fmt.pair_group_bytes), np.uint8)
    tiles = 2 * fmt.tile_bytes
    # An int8 weight is stored plus 128 and is never -128.
    lowest = 1 if fmt.name == "q8g32s" else 0
    blocks[:, :tiles] = rng.integers(lowest, 256, (count, tiles), np.uint8)
    levels = 255 if fmt.name == "q8g32s" else 16
    scales = rng.uniform(0.5, 1.5, (count, PAIR_ROWS)) * WEIGHT_STD * np.sqrt(12) / levels
    lines = [scales] if fmt.name != "q4g32a" else [scales, -7.5 * scales]
    blocks[:, tiles:] = np.concatenate(lines, axis=1).astype(np.float16).view(np.uint8)
    return blocks.reshape(-1)
