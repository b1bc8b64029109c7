"""Adapters as a plan takes them: which of its weights each pair of matrices adds to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint import Layout
from slmq.errors import CheckpointError
from slmq.formats import FORMATS
from slmq.models.parts.wrapped import names_elsewhere
from slmq.models.registry import FAMILIES
from slmq.weights.survey import Survey, Wish

if TYPE_CHECKING:
    from slmq.models.loading import LoadedWeights
    from slmq.plan.plan import RecordedPlan
    from slmq.weights.lora import Lora, LowRank
    from slmq.weights.rows import Rows

__all__ = ["Adapter", "fit", "wishes_of"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
IN_GGUF = {"mistral": "llama", "granitemoehybrid": "granite"}  # families by another's name there


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits a plan.

    Attributes
    ----------
    native : _native.Adapter
    digest : str
        Of all that it adds, whatever file that came from: what was computed with one adapter is
        no use with another.
    """

    native: _native.Adapter
    digest: str


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


def fit(plan: RecordedPlan, loaded: LoadedWeights, lora: Lora) -> Adapter:
    """Bring an adapter into the order of a plan's weights.

    Raises
    ------
    CheckpointError
        If it has pairs that no weight of the model takes, or of another size.
    UnsupportedModelError
        If it does more than add products of two matrices.
    """
    lora.require_plain()
    _require_base(loaded, lora)
    slots: dict[str, list[int]] = {}
    for number, linear in enumerate(plan.slots):
        slots.setdefault(linear.name, []).append(number)
    parts, used, digest = [], set[str](), hashlib.sha256()
    for own, wish in wishes_of(loaded, lora.layout):
        module = next((name for name in names_elsewhere(own) if name in lora.pairs), None)
        if module is None or wish.name not in slots:
            continue
        pair = lora.pairs[module]
        used.add(module)
        b = _rows(wish, pair, lora, module)
        digest.update(f"{wish.name}\0{pair.a.shape}".encode() + pair.a.tobytes() + b.tobytes())
        for slot in slots[wish.name]:
            columns = plan.slots[slot].columns
            a = pair.a if columns is None else np.ascontiguousarray(pair.a[:, columns])
            parts.append((slot, *_balanced(a, b)))
    if unused := sorted(lora.pairs.keys() - used):
        raise CheckpointError(
            f"{len(unused)} of {len(lora.pairs)} pairs of matrices fit no weight of this model "
            f"(embeddings, and heads that are the embedding, take none): "
            + ", ".join(unused[:4])
            + (", ..." if len(unused) > 4 else ""),
            file=lora.path,
        )
    kept = _type_beside(loaded.formats, plan.activations)
    return Adapter(plan.native.adapter(parts, kept), digest.hexdigest())


def _require_base(loaded: LoadedWeights, lora: Lora) -> None:
    """Rows lie in the order of an architecture: those of another may fit, and say nothing."""
    own = loaded.family.__name__.rpartition(".")[2]
    said = lora.architecture
    if said is not None and FAMILIES.get(said) not in (own, IN_GGUF.get(own)):
        raise CheckpointError(
            f"general.architecture: expected an adapter of {IN_GGUF.get(own, own)}, got one of "
            f"{said!r:.80}: is it for another model?",
            file=lora.path,
        )


def _type_beside(formats: Iterable[str], activations: str) -> str:
    """What an adapter is kept in: no coarser than weights of these formats and their inputs."""
    found = [FORMATS[name] for name in formats]
    if any(f.quantized and f.bits < 8 for f in found) and activations != "a16g32":
        return "i8"
    return "f16" if any(f.quantized or f.name == "f16" for f in found) else "f32"


def wishes_of(loaded: LoadedWeights, layout: Layout) -> Iterator[tuple[str, Wish]]:
    """The matrices that the family reads, with what an adapter of this layout calls each."""
    survey = Survey(_Nothing(layout, loaded.weights.embed.name))
    loaded.family.load(survey, loaded.config)
    named = loaded.family.GGUF.names.items()
    embed = next(name for name, gguf in named if gguf == "token_embd")
    for wish in survey.wishes:
        # Where the head is the embedding, what is added to one would be missing from the other.
        if not wish.is_matrix or wish.stored == f"{embed}.weight":
            continue
        name = wish.stored
        if layout.gguf_terms:
            name = loaded.family.GGUF.name(name)
        yield name.removesuffix(".weight"), wish


def _rows(wish: Wish, pair: LowRank, lora: Lora, module: str) -> F32:
    """B with the rows of the weight, in their order."""
    stored = wish.n if wish.rows is None else wish.rows.stored
    if pair.a.shape[1] != wish.k or pair.b.shape[0] != stored:
        raise CheckpointError(
            f"{module}: expected A [rank, {wish.k}] and B [{stored}, rank], got "
            f"{list(pair.a.shape)} and {list(pair.b.shape)}: is it for another model?",
            file=lora.path,
        )
    b = pair.b
    if wish.rows is not None:
        rows = wish.rows if lora.layout.own_rows else replace(wish.rows, heads=0)
        b = rows.of(b, wish.n)
    return np.ascontiguousarray(b if wish.order is None else b[wish.order])


def _balanced(a: F32, b: F32) -> tuple[F32, F32]:
    """The same product of matrices that float16 holds equally well, by a power of two."""
    most_a, most_b = float(np.abs(a).max(initial=0)), float(np.abs(b).max(initial=0))
    if most_a == 0 or most_b == 0:
        return np.zeros_like(a), np.zeros_like(b)
    shift = round((math.log2(most_a) - math.log2(most_b)) / 2)
    return np.ldexp(a, -shift), np.ldexp(b, shift)
