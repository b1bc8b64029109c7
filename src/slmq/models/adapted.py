"""Which weights of a model an adapter changes, and how, in the order of their rows and columns."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from slmq.checkpoint import Layout
from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.models.parts.wrapped import names_elsewhere
from slmq.models.registry import FAMILIES, family_named
from slmq.weights.lora import Lora, LowRank
from slmq.weights.survey import Survey, Wish

if TYPE_CHECKING:
    from slmq.models.family import Family
    from slmq.weights.rows import Rows

__all__ = ["Owner", "Part", "fitted", "wishes_of"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
IN_GGUF = {"mistral": "llama", "granitemoehybrid": "granite"}  # families by another's name there
PARTED_IN_GGUF = ("granitemoehybrid",)  # with the other's matrices, where folders hold two as one


class Owner(Protocol):
    """A model that an adapter may fit: its family, configuration and weights, read or noted."""

    @property
    def family(self) -> Family[Any]: ...

    @property
    def config(self) -> Any: ...

    @property
    def weights(self) -> Any: ...


class Part(NamedTuple):
    """What an adapter does to one weight of a model.

    Attributes
    ----------
    name : str
        The weight's, as a folder of packed weights has it.
    a, b : float32
        In the order of the weight's columns and rows.
    lengths, bias : float32[n], optional
        As of `LowRank`.
    replaces_bias : bool
        Whether the bias takes the place of the weight's own.
    """

    name: str
    a: F32
    b: F32
    lengths: F32 | None
    bias: F32 | None
    replaces_bias: bool


def fitted(loaded: Owner, lora: Lora, names: Container[str]) -> list[Part]:
    """An adapter's parts by the weights of these names; all that it has must be among them.

    Raises
    ------
    CheckpointError, UnsupportedModelError
    """
    _require_base(loaded, lora)
    used: set[str] = set()
    parts = []
    for own, wish in wishes_of(loaded, lora.layout):
        modules = names_elsewhere(own)
        module = next((name for name in modules if name in lora.pairs), None)
        bias = next((f"{name}.bias" for name in modules if f"{name}.bias" in lora.replaced), None)
        if wish.name not in names or (module is None and bias is None):
            continue
        stored = wish.n if wish.rows is None else wish.rows.stored
        nothing = LowRank(np.zeros((1, wish.k), np.float32), np.zeros((stored, 1), np.float32))
        pair = nothing if module is None else lora.pairs[module]
        b = _rows(wish, pair, lora, module or own)
        lengths, added = (_vector(wish, values, lora) for values in (pair.lengths, pair.bias))
        whole = None if bias is None else _vector(wish, lora.replaced[bias], lora)
        if whole is not None and added is not None:
            whole = whole + added
        parts.append(
            Part(
                wish.name, pair.a, b, lengths, added if whole is None else whole, whole is not None
            )
        )
        used |= {name for name in (module, bias) if name is not None}
    if unused := sorted(lora.pairs.keys() - used):
        raise CheckpointError(
            f"{len(unused)} of {len(lora.pairs)} pairs of matrices fit no weight of this model "
            f"(embeddings, heads that are the embedding, and experts take none): "
            + ", ".join(unused[:4])
            + (", ..." if len(unused) > 4 else ""),
            file=lora.path,
        )
    if others := sorted(lora.replaced.keys() - used):
        raise UnsupportedModelError(
            f"{lora.path}: the adapter replaces {others[0]}, which is not done beside a running "
            f"model; `slmq merge` puts it into the weights"
        )
    return parts


def wishes_of(loaded: Owner, layout: Layout) -> Iterator[tuple[str, Wish]]:
    """The matrices that the family reads, with what an adapter of this layout calls each."""
    family = loaded.family
    named = family
    if layout.gguf_terms and _own_name(loaded) in PARTED_IN_GGUF:
        named = family_named(IN_GGUF[_own_name(loaded)], "")
    theirs = _matrices(named, loaded, layout)
    own = theirs if named is family else _matrices(family, loaded, Layout())
    embed = next(name for name, gguf in named.GGUF.names.items() if gguf == "token_embd")
    for wish, mine in zip(theirs, own, strict=True):
        # Where the head is the embedding, what is added to one would be missing from the other.
        if wish.stored == f"{embed}.weight":
            continue
        name = named.GGUF.name(wish.stored) if layout.gguf_terms else wish.stored
        yield name.removesuffix(".weight"), replace(wish, tensor=mine.tensor)


def _matrices(family: Family[Any], loaded: Owner, layout: Layout) -> list[Wish]:
    """What a family reads of a model, in the order of its steps."""
    survey = Survey(_Nothing(layout, loaded.weights.embed.name))
    family.load(survey, loaded.config)
    return [wish for wish in survey.wishes if wish.is_matrix]


def _own_name(loaded: Owner) -> str:
    return loaded.family.__name__.rpartition(".")[2]


def _rows(wish: Wish, pair: LowRank, lora: Lora, module: str) -> F32:
    """B with the rows of the weight, in their order."""
    stored = wish.n if wish.rows is None else wish.rows.stored
    if pair.a.shape[1] != wish.k or pair.b.shape[0] != stored:
        raise CheckpointError(
            f"{module}: expected A [rank, {wish.k}] and B [{stored}, rank], got "
            f"{list(pair.a.shape)} and {list(pair.b.shape)}: is it for another model?",
            file=lora.path,
        )
    return _in_order(wish, pair.b, lora)


def _vector(wish: Wish, values: F32 | None, lora: Lora) -> F32 | None:
    """Lengths or biases of the rows of the weight, in their order."""
    if values is None:
        return None
    stored = wish.n if wish.rows is None else wish.rows.stored
    if values.shape != (stored,):
        raise CheckpointError(
            f"{wish.stored}: expected lengths and biases of {stored} values, got "
            f"{list(values.shape)}: is it for another model?",
            file=lora.path,
        )
    return _in_order(wish, values, lora)


def _in_order(wish: Wish, values: F32, lora: Lora) -> F32:
    if wish.rows is not None:
        rows = wish.rows if lora.layout.own_rows else replace(wish.rows, heads=0)
        values = rows.of(values, wish.n)
    return np.ascontiguousarray(values if wish.order is None else values[wish.order])


def _require_base(loaded: Owner, lora: Lora) -> None:
    """Rows lie in the order of an architecture: those of another may fit, and say nothing."""
    own = _own_name(loaded)
    said = lora.architecture
    if said is not None and FAMILIES.get(said) not in (own, IN_GGUF.get(own)):
        raise CheckpointError(
            f"general.architecture: expected an adapter of {IN_GGUF.get(own, own)}, got one of "
            f"{said!r:.80}: is it for another model?",
            file=lora.path,
        )


class _Nothing:
    """The stock of a checkpoint of this layout that holds nothing: a family says what it wants.

    It only knows the name of the embedding, by which some families tell where their tensors lie.
    """

    def __init__(self, layout: Layout, embed: str) -> None:
        self.layout = layout
        self._embed = embed

    def has(self, name: str) -> bool:
        return name == self._embed

    def bias(self, name: str, announced: bool) -> str | None:
        return None

    def own_head(self, name: str, embed: str, tied: bool) -> bool:
        return not tied

    def note(self, name: str) -> None:
        pass

    def format_of(
        self, name: str, n: int, k: int, rows: Rows | None = None, floats: bool = False
    ) -> str:
        return "f32"

    def columns_of(self, name: str, n: int, k: int, rows: Rows | None = None) -> I32 | None:
        return None
