"""Published models with random weights, built in memory: speed without a download.

A shape is the configuration of a model in the catalogue, and its own family records it: the same
matrices, norms, windows and biases, the same steps. What such a model says is noise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint import Layout
from slmq.formats import FORMATS, GROUP, PAIR_ROWS, Format, Parts, format_named, pack_parts
from slmq.hub.catalogue import nearest
from slmq.machine.disk import readable_bytes
from slmq.machine.memory import available_memory_bytes
from slmq.models.family import Family, ModelConfig
from slmq.models.loading import LoadedWeights
from slmq.models.parts.gguf import Weights
from slmq.models.registry import family_named
from slmq.plan.linear import Linear
from slmq.speed.configs import CONFIGS
from slmq.weights.base import Reader
from slmq.weights.placement import MemoryChoice
from slmq.weights.rows import Rows
from slmq.weights.survey import Survey, Wish

__all__ = ["SHAPES", "Shape", "random_blocks", "random_weights", "shape_named"]

SLAB_BYTES = 64 << 20
RANDOM_BYTES = 16 << 20
ALIGNMENT = 64
WEIGHT_STD = 0.02  # keeps activations in range through any number of layers
RUNNING_BYTES = 1 << 30  # buffers, cache, and what the probes of the machine read


@dataclass(frozen=True)
class Shape:
    """A model without its weights.

    Attributes
    ----------
    name : str
    config : mapping
        As config.json, with its `model_type`.
    """

    name: str
    config: Mapping[str, Any]

    def weights(self, fmt: Format = FORMATS["f32"]) -> list[Wish]:
        """What its family asks for when matrices are packed to `fmt`, in that order.

        Raises
        ------
        CheckpointError, UnsupportedModelError
            As of a file with this configuration.
        """
        survey = Survey(_Published(fmt))
        _load(self, survey)
        return survey.wishes

    def parameters(self) -> int:
        """Number of weights, tied ones counted once."""
        return _parameters(self.weights())

    def packed_bytes(self, fmt: Format) -> int:
        """Bytes of all packed matrices."""
        return sum(wish.tensor.nbytes for wish in self.weights(fmt) if wish.is_matrix)


def _parameters(wishes: list[Wish]) -> int:
    return sum(math.prod(wish.tensor.shape) for wish in wishes)


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {name: Shape(name, config) for name, config in CONFIGS.items()}
)


def shape_named(name: str) -> Shape:
    """The shape of that name, or the only one that begins so; of "NAME/8" the first 8 layers.

    Raises
    ------
    ValueError
        If there is none; names those that are near. Or if it has fewer layers.
    """
    name, slash, layers = name.partition("/")
    if slash:
        return _first_layers(shape_named(name), layers)
    if name in SHAPES:
        return SHAPES[name]
    starts = [known for known in SHAPES if name and known.startswith(name)]
    if len(starts) == 1:
        return SHAPES[starts[0]]
    near = starts or nearest(name, SHAPES)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"shape: expected one of {', '.join(SHAPES)}, got {name!r}{hint}")


def _first_layers(shape: Shape, wanted: str) -> Shape:
    """The same model with fewer layers, so that it fits into less memory."""
    key = "n_layer" if "n_layer" in shape.config else "num_hidden_layers"
    most = shape.config[key]
    if not wanted.isdecimal() or not 1 <= int(wanted) <= most:
        raise ValueError(f"shape: expected {shape.name}/1 to /{most} layers, got {wanted!r:.40}")
    count = int(wanted)
    kinds = {"layer_types": shape.config["layer_types"][:count]} if _listed(shape) else {}
    return Shape(f"{shape.name}/{wanted}", {**shape.config, key: count, **kinds})


def _listed(shape: Shape) -> bool:
    return isinstance(shape.config.get("layer_types"), list)


def random_weights(name: str, weight_format: str = "q4g32s", *, seed: int = 0) -> LoadedWeights:
    """Weights of a shape, random, packed, the same for the same seed.

    Parameters
    ----------
    name : str
        One of `SHAPES`, or the start of only one; "NAME/8" for its first 8 layers.
    weight_format : str
        A stored format (one of `slmq.formats.FORMATS`) or "int4", "int8".

    Raises
    ------
    ValueError
        For another shape or format.
    MemoryError
        If the weights do not fit into the memory that is free.
    """
    shape, fmt = shape_named(name), format_named(weight_format)
    need, free = shape.packed_bytes(fmt) + RUNNING_BYTES, available_memory_bytes()
    if free is not None and need > free:
        raise MemoryError(
            f"{shape.name} in {fmt.name} needs {readable_bytes(need)} of memory, but only "
            f"{readable_bytes(free)} are free; choose a smaller shape or a format with fewer bits"
        )
    return build_weights(shape, fmt, seed)


def build_weights(shape: Shape, fmt: Format, seed: int = 0) -> LoadedWeights:
    """`random_weights` of a shape that needs no name."""
    reader = _RandomReader(fmt, seed)
    family, config, weights = _load(shape, reader)
    return LoadedWeights(
        family,
        config,
        weights,
        _parameters(reader.wishes),
        reader.nbytes.total(),
        dict(reader.nbytes),
        MemoryChoice("huge", "random"),
    )


def _load(shape: Shape, reader: Reader) -> tuple[Family[Any], ModelConfig, Weights]:
    """The family, its checked configuration, and what its load() returns."""
    family = family_named(shape.config["model_type"], shape.name)
    config = family.Config.from_dict(shape.config)
    return family, config, family.load(reader, config)


class _Published:
    """A `Stock` that holds whatever it is asked for, named as Hugging Face's folders do."""

    layout = Layout()

    def __init__(self, fmt: Format) -> None:
        self._fmt = fmt

    def has(self, name: str) -> bool:
        return True

    def bias(self, name: str, announced: bool) -> str | None:
        return name if announced else None

    def own_head(self, name: str, embed: str, tied: bool) -> bool:
        return not tied

    def note(self, name: str) -> None:
        pass

    def format_of(
        self, name: str, n: int, k: int, rows: Rows | None = None, floats: bool = False
    ) -> str:
        return "f16" if floats and self._fmt.quantized else self._fmt.name

    def columns_of(self, name: str, n: int, k: int, rows: Rows | None = None) -> None:
        return None


class _RandomReader(Survey):
    """Makes up what it is asked for."""

    def __init__(self, fmt: Format, seed: int) -> None:
        super().__init__(_Published(fmt))
        self._seed = seed
        self._random: dict[str, npt.NDArray[np.uint8]] = {}
        self._slab = np.empty(0, np.uint8)
        self.nbytes: Counter[str] = Counter()

    def linear(
        self,
        name: str,
        n: int,
        k: int,
        *,
        bias: str | None = None,
        order: npt.NDArray[np.int32] | None = None,
        rows: Rows | None = None,
        floats: bool = False,
    ) -> Linear:
        noted = super().linear(name, n, k, bias=bias, order=order, rows=rows, floats=floats)
        values = None if bias is None else np.zeros(n, np.float32)
        matrix = self._matrix(self.wish(noted.name).tensor.format, n, k)
        return Linear(matrix, values, name=noted.name)

    def vector(
        self, name: str, size: int, *, columns: int = 0, whole: bool = False
    ) -> npt.NDArray[np.float32]:
        """Ones; xIELU's eps is just below 0."""
        ones = super().vector(name, size, columns=columns, whole=whole)
        return ones * np.float32(-1e-6) if name.endswith("act_fn.eps") else ones

    def table(self, name: str, n: int, k: int) -> Linear:
        """A table of zeros, which takes no memory until rows of it are read."""
        noted = super().table(name, n, k)
        rows = np.zeros(n * k * 2, np.uint8)
        return Linear(_native.RowTable("bf16", rows, n, k, "f16"), name=noted.name)

    def _matrix(self, fmt: str, n: int, k: int) -> _native.Matrix:
        # Where a row's scale stands depends on its columns only if the whole row shares it.
        key = fmt if FORMATS[fmt].run else f"{fmt} {k}"
        if key not in self._random:
            self._random[key] = random_blocks(FORMATS[fmt], k, np.random.default_rng(self._seed))
        random, packed = self._random[key], self._take(_native.packed_bytes(fmt, n, k))
        for start in range(0, len(packed), len(random)):
            part = packed[start : start + len(random)]
            part[:] = random[: len(part)]
        self.nbytes[fmt] += len(packed)
        return _native.Matrix.from_packed(fmt, n, k, packed)

    def _take(self, count: int) -> npt.NDArray[np.uint8]:
        """Aligned bytes out of a large allocation, which NumPy asks 2 MiB pages for."""
        if len(self._slab) < count:
            slab = np.empty(max(count, SLAB_BYTES) + ALIGNMENT, np.uint8)
            self._slab = slab[-slab.ctypes.data % ALIGNMENT :]
        taken: npt.NDArray[np.uint8] = self._slab[:count]
        self._slab = self._slab[count + -count % ALIGNMENT :]
        return taken


def random_blocks(fmt: Format, width: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Some pairs of tiles with their scales: random weights around 0, of a plausible size.

    Returns
    -------
    uint8[bytes], about 16 MiB of whole pair-groups, or of pairs of rows of `width` columns if those
    have one scale.
    """
    if fmt.run == 0:
        pairs = max(1, RANDOM_BYTES // fmt.run_bytes(width))
        return pack_parts(_random_parts(fmt, pairs * PAIR_ROWS, width, rng), fmt)
    k = GROUP * fmt.run
    count = RANDOM_BYTES // fmt.run_bytes(k)
    if not fmt.quantized:
        dtype = np.float16 if fmt.name == "f16" else np.float32
        size = fmt.run_bytes(k) // np.dtype(dtype).itemsize
        values = rng.standard_normal((count, size), np.float32) * np.float32(WEIGHT_STD)
        stored: npt.NDArray[np.uint8] = values.astype(dtype).view(np.uint8)
        return stored.reshape(-1)
    return pack_parts(_random_parts(fmt, PAIR_ROWS, count * k, rng), fmt)


def _random_parts(fmt: Format, n: int, k: int, rng: np.random.Generator) -> Parts:
    """Codes of one size are as frequent as others, and stand for weights around 0."""
    levels = 3 if fmt.zero == 1 else 1 << fmt.bits  # two bits hold -1, 0 and 1
    # An int8 weight is stored plus 128 and is never -128.
    codes = rng.integers(1 if fmt.zero == 128 else 0, levels, (n, k), np.uint8)
    step = WEIGHT_STD / (np.std(fmt.values) if fmt.values else levels / np.sqrt(12))
    shared = (n, k // (fmt.run_groups(k) * GROUP))
    sizes = rng.uniform(0.5, 1.5, shared) * step
    middle = (levels - 1) / 2
    if fmt.two_level:
        factors = rng.integers(8, 16, (n, k // GROUP * fmt.parts)).astype(np.int8)
        d = (sizes / (6 if fmt.lift else 12)).astype(np.float16)
        if not fmt.offset:
            return Parts(codes, factors, None, d)
        return Parts(codes, factors, factors, d, (sizes / 12 * middle).astype(np.float16))
    scales = sizes.astype(np.float16)
    if fmt.offset == "zero":
        return Parts(codes, scales, np.full(shared, 8, np.uint8))
    return Parts(codes, scales, (-middle * sizes).astype(np.float16) if fmt.offset else None)
