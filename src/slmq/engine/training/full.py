"""All weights of a model, or of its last layers, as what is trained, in float32.

Matrices, biases and norms: everything lies behind each other in one vector, in the order in which
the family asks for it: a matrix as the format f32 lays it out, so that kernels multiply with it
where it is, a vector padded with zeros to a multiple of 32. What is padding has no gradient, and
stays zero.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint import Checkpoint, Layout
from slmq.engine.training.layers import last_layers, layer_of
from slmq.engine.training.steps import EmbedStep, LinearPart, LinearStep, NormPart, NormStep
from slmq.engine.training.tape import Tape
from slmq.errors import UnsupportedModelError
from slmq.formats import padded
from slmq.machine.disk import readable_bytes
from slmq.machine.memory import available_memory_bytes
from slmq.models.loading import LoadedWeights, OpenedWeights, open_weights, tensors_of
from slmq.plan.linear import Linear
from slmq.weights.placement import MemoryChoice
from slmq.weights.reader import WeightReader
from slmq.weights.rows import Rows
from slmq.weights.survey import Survey, Wish

__all__ = ["FullWeights", "Place", "open_full"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
FLOATS = ("f32", "f16", "bf16")
BYTES_EACH = 16  # of a parameter: itself, its gradient, two moments
FROZEN_BYTES = 4  # of a weight that is only read
MANY = 200_000_000  # parameters, above which a run is only for who has time
COLUMNS = 4096  # of the rows that the vectors are made as

log = logging.getLogger("slmq")


class Vector(np.ndarray[Any, np.dtype[np.float32]]):
    """A vector that is trained, as families hand it on.

    Some families add a number to it, or divide it by one: what comes of that knows how it was made.
    Of anything else that is done with it nothing is known; it has no name then.

    Attributes
    ----------
    name : str
        The tensor's, or empty.
    divisor, offset : float32
        It is the tensor / divisor + offset.
    """

    name: str
    divisor: np.float32
    offset: np.float32

    def __array_finalize__(self, obj: object) -> None:
        self.name, self.divisor, self.offset = "", np.float32(1.0), np.float32(0.0)

    def called(self, name: str, divisor: np.float32, offset: np.float32) -> Vector:
        """The same, which is made so of the tensor of this name."""
        self.name, self.divisor, self.offset = name, divisor, offset
        return self

    def __add__(self, other: Any) -> Any:
        made = super().__add__(other)
        if not isinstance(other, np.floating) or not isinstance(made, Vector) or self.offset:
            return made
        return made.called(self.name, self.divisor, np.float32(other))

    def __truediv__(self, other: Any) -> Any:
        made = super().__truediv__(other)
        plain = self.divisor == 1.0 and not self.offset
        if not isinstance(other, np.floating) or not isinstance(made, Vector) or not plain:
            return made
        return made.called(self.name, np.float32(other), self.offset)


@dataclass(frozen=True)
class Place:
    """Where a matrix or a vector lies in the vector of all parameters.

    Attributes
    ----------
    wish : Wish
        What the family asks for.
    stored : str
        The tensor of the model's files that it is, or a part of.
    at, size : int
        In float32s.
    """

    wish: Wish
    stored: str
    at: int
    size: int

    def part(self, values: F32) -> F32:
        """Its own values, with padding."""
        return values[self.at : self.at + self.size]

    def matrix(self, values: F32) -> _native.Matrix:
        """A matrix over its values, where they are."""
        packed = self.part(values).view(np.uint8)
        return _native.Matrix.from_packed("f32", self.wish.n, self.wish.k, packed)


class FullWeights:
    """All weights of a model, or those of its last layers.

    Parameters
    ----------
    places : list of Place
        At least one.

    Attributes
    ----------
    values, slopes : float32[parameters]
        All parameters and their gradients.
    places : dict of str to Place
        By the name that the family knows.
    copies : dict of str to str
        Stored tensors that are others once more, such as a head that is the embedding.
    """

    def __init__(self, places: list[Place]) -> None:
        total = places[-1].at + places[-1].size
        self.values, self.slopes = _zeros(total), _zeros(total)
        self.places = {place.wish.name: place for place in places}
        self.copies: dict[str, str] = {}
        self._turning: list[Callable[[], None]] = []

    @property
    def count(self) -> int:
        """Trained parameters."""
        return sum(_count(place.wish) for place in self.places.values())

    @property
    def modules(self) -> list[str]:
        """Names of all tensors, in order."""
        return list(self.places)

    def attach(self, tape: Tape) -> None:
        """Give the steps of a model the places of their gradients.

        Raises
        ------
        UnsupportedModelError
            The model does something with a weight that has no gradient.
        """
        left = set(self.places)
        for step in (step for segment in tape.segments for step in segment.steps):
            if isinstance(step, EmbedStep):
                for table in (step.tokens, step.positions):
                    if table is not None:
                        table.slope = self._slope(table.name, left)
            elif isinstance(step, NormStep):
                self._attach_norm(step.part, left)
            elif isinstance(step, LinearStep):
                for part in step.parts:
                    self._attach_linear(part, left)
        head = tape.head_part
        self._attach_linear(head, left)
        if isinstance(head.own_bias, Vector) and head.own_bias.name:
            bias = self._vector(head.own_bias, self.values)
            self._turning.append(lambda: tape.head.set_bias(bias))
        if left:
            raise UnsupportedModelError(
                f"this model cannot be trained in full: {min(left)} is used in a way that has no "
                f"gradient yet; an adapter can be trained (type 'lora')"
            )

    def turn(self) -> None:
        """Bring norms and the head's bias up to date, after the values were changed."""
        for turn in self._turning:
            turn()

    def _slope(self, name: str, left: set[str]) -> F32 | None:
        """Where the gradient of a tensor goes."""
        if name not in self.places:
            return None
        left.discard(name)
        return self.places[name].part(self.slopes)

    def _vector(self, vector: Vector, values: F32) -> F32:
        return self.places[vector.name].part(values)[: len(vector)]

    def _attach_linear(self, part: LinearPart, left: set[str]) -> None:
        part.slope = self._slope(part.name, left)
        bias = part.own_bias
        if isinstance(bias, Vector) and bias.name and not bias.offset and bias.divisor == 1.0:
            left.discard(bias.name)
            part.bias = self.places[bias.name].part(self.values)
            part.bias_slope = self._vector(bias, self.slopes)

    def _attach_norm(self, part: NormPart, left: set[str]) -> None:
        weight, bias = part.weight, part.bias
        if not isinstance(weight, Vector) or not weight.name:
            return
        if bias is not None and not (isinstance(bias, Vector) and bias.name):
            return
        left.discard(weight.name)
        part.slope, stored = self._vector(weight, self.slopes), self._vector(weight, self.values)
        part.scale = float(np.float32(1.0) / weight.divisor)
        added = None
        if bias is not None:
            left.discard(bias.name)
            part.bias_slope = self._vector(bias, self.slopes)
            added = self._vector(bias, self.values)
        divisor, offset = weight.divisor, weight.offset
        self._turning.append(lambda: part.norm.set(_made(stored, divisor, offset), added))


class Noted(Survey):
    """What a family asks for, with the answers: what is in doubt is to be said once."""

    def __init__(self, reader: WeightReader) -> None:
        super().__init__(reader)
        self.biases: dict[str, str | None] = {}
        self.heads: dict[str, bool] = {}

    def bias(self, name: str, announced: bool) -> str | None:
        """As of `Reader`, and noted."""
        self.biases[name] = super().bias(name, announced)
        return self.biases[name]

    def own_head(self, name: str, embed: str, tied: bool) -> bool:
        """As of `Reader`, and noted."""
        self.heads[name] = super().own_head(name, embed, tied)
        return self.heads[name]


class FullReader:
    """A `Reader` that puts what it reads and is trained into the places of all parameters."""

    def __init__(self, reader: WeightReader, full: FullWeights, noted: Noted) -> None:
        self._reader = reader
        self._full = full
        self._noted = noted

    @property
    def layout(self) -> Layout:
        return self._reader.layout

    def has(self, name: str) -> bool:
        return self._reader.has(name)

    def bias(self, name: str, announced: bool) -> str | None:
        return self._noted.biases[name]

    def own_head(self, name: str, embed: str, tied: bool) -> bool:
        own = self._noted.heads[name]
        if not own and self._reader.has(name):
            stored = self._reader.stored_name
            self._full.copies[stored(name)] = stored(embed)
        return own

    def vector(
        self, name: str, size: int, *, columns: int = 0, whole: bool = False
    ) -> npt.NDArray[np.float32]:
        return self._kept(name, self._reader.vector(name, size, columns=columns, whole=whole))

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
        read = self._reader.linear(name, n, k, bias=bias, order=order, rows=rows, floats=floats)
        place = self._full.places.get(read.name)
        if place is None:
            return read
        place.part(self._full.values)[:] = read.matrix.packed.view(np.float32)
        kept = None
        if bias is not None and read.bias is not None:
            kept = self._kept(bias if rows is None else rows.name(bias, n), read.bias)
        return Linear(place.matrix(self._full.values), kept, read.columns, read.name)

    def table(self, name: str, n: int, k: int) -> Linear:
        return self.linear(name, n, k, floats=True)

    def _kept(self, name: str, values: F32) -> F32:
        place = self._full.places.get(name)
        if place is None:
            return values
        part = place.part(self._full.values)[: len(values)]
        part[:] = values
        return part.view(Vector).called(name, np.float32(1.0), np.float32(0.0))


def open_full(
    checkpoint: Checkpoint, *, threads: int, num_layers: int = -1
) -> tuple[LoadedWeights, FullWeights]:
    """The weights of a folder of floats, in float32 and ready to be trained.

    Parameters
    ----------
    num_layers : int
        Train so many layers, counted from the last, and nothing else; -1: everything.

    Raises
    ------
    UnsupportedModelError
        They are no floats, or more than memory holds.
    CheckpointError
    """
    opened = _opened(checkpoint, threads)
    with tensors_of(checkpoint):
        noted = Noted(opened.reader)
        opened.family.load(noted, opened.config)
        _require_floats(checkpoint, opened, noted.wishes)
        places = _places(opened, _trained(noted.wishes, num_layers))
        frozen = sum(map(_count, noted.wishes)) - sum(_count(place.wish) for place in places)
        _require_memory(checkpoint, places, frozen)
        full = FullWeights(places)
        weights = opened.family.load(FullReader(opened.reader, full, noted), opened.config)
    opened.reader.tell()
    nbytes = full.values.nbytes + frozen * FROZEN_BYTES
    memory = MemoryChoice("huge", "trained where they are")
    loaded = LoadedWeights(
        opened.family, opened.config, weights, full.count + frozen, nbytes, {"f32": nbytes}, memory
    )
    return loaded, full


def _opened(checkpoint: Checkpoint, threads: int) -> OpenedWeights:
    if checkpoint.packed or checkpoint.layout.gguf_terms:
        kind = "packed weights" if checkpoint.packed else "a GGUF file"
        raise _no_floats(checkpoint, kind)
    if checkpoint.metadata.get("quantization_config"):
        raise _no_floats(checkpoint, "quantized weights")
    return open_weights(checkpoint, threads=threads, format="f32", keep=False)


def _trained(wishes: list[Wish], num_layers: int) -> list[Wish]:
    """What belongs to the last layers, or everything."""
    if num_layers < 0:
        return wishes
    last = set(last_layers((wish.name for wish in wishes), num_layers))
    return [wish for wish in wishes if layer_of(wish.name) in last]


def _require_floats(checkpoint: Checkpoint, opened: OpenedWeights, wishes: list[Wish]) -> None:
    for wish in wishes:
        stored = opened.reader.stored_name(wish.stored or wish.name)
        dtype = checkpoint.tensors[stored].dtype
        if dtype not in FLOATS:
            raise _no_floats(checkpoint, f"{stored} in {dtype}")


def _places(opened: OpenedWeights, wishes: list[Wish]) -> list[Place]:
    places, at = [], 0
    for wish in wishes:
        stored = opened.reader.stored_name(wish.stored or wish.name)
        size = padded(wish.tensor.shape[0], 32)
        if wish.is_matrix:
            size = _native.packed_bytes("f32", wish.n, wish.k) // 4
        places.append(Place(wish, stored, at, size))
        at += size
    return places


def _no_floats(checkpoint: Checkpoint, found: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{checkpoint.path}: training all weights starts from floats, a folder of safetensors in "
        f"{', '.join(FLOATS)}; found {found}. Give the floats (`slmq dequantize` makes some of any "
        f"model), or train an adapter beside these weights (type 'lora')"
    )


def _require_memory(checkpoint: Checkpoint, places: list[Place], frozen: int) -> None:
    count = sum(_count(place.wish) for place in places)
    need, free = count * BYTES_EACH + frozen * FROZEN_BYTES, available_memory_bytes()
    said = (
        f"{checkpoint.path}: {count / 1e6:,.0f} million weights, their gradients and moments take "
        f"{readable_bytes(need)}"
    )
    if free is not None and need > free:
        raise UnsupportedModelError(
            f"{said}, and {readable_bytes(free)} of memory are free; train an adapter (type "
            f"'lora'), or a smaller model"
        )
    if count > MANY:
        log.warning("%s; training them on a CPU takes long", said)


def _count(wish: Wish) -> int:
    return int(np.prod(wish.tensor.shape))


def _zeros(count: int) -> F32:
    rows: F32 = _native.zero_rows(-(-count // COLUMNS), COLUMNS)
    return rows.reshape(-1)[:count]


def _made(stored: F32, divisor: np.float32, offset: np.float32) -> F32:
    """What a family makes of a stored vector."""
    made = stored if divisor == 1.0 else np.divide(stored, divisor, dtype=np.float32)
    return made if not offset else np.add(made, offset, dtype=np.float32)
