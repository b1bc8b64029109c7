"""From the options of a command to a loaded model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.cli.output import Downloads, spinner

if TYPE_CHECKING:
    from slmq.generation.model import Model

__all__ = ["Loaded", "load_model"]


@dataclass(frozen=True)
class Loaded:
    """A model and the sampling arguments that the catalogue suggests for it."""

    model: Model
    suggested: dict[str, Any]


def load_model(
    name: str,
    *,
    quant: str | None = None,
    n_ctx: int | None = None,
    threads: int | None = None,
    kv_dtype: str = "f16",
    memory: str | None = None,
    activations: str = "mixed",
    revision: str | None = None,
    offline: bool = False,
) -> Loaded:
    """Finds a model, downloads it with a bar if need be, and loads it; errors as `slmq.load`."""
    import slmq.hub as hub

    with Downloads() as progress:
        found = hub.resolve(name, revision=revision, local_files_only=offline, progress=progress)
    with spinner(f"loading {found.name}"):
        from slmq.engine.opening import open_engine
        from slmq.generation.model import Model

        engine = open_engine(
            found.path,
            name=found.name,
            quant=quant,
            n_ctx=n_ctx,
            n_threads=threads,
            kv_dtype=kv_dtype,
            memory=memory,
            activations=activations,
        )
    suggested = {} if found.entry is None else dict(found.entry.sampling)
    return Loaded(Model(engine), suggested)
