"""From the options of a command to a loaded model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.cli.output import Downloads, spinner

if TYPE_CHECKING:
    from slmq.engine.options import LoadOptions
    from slmq.generation.model import Model

__all__ = ["Loaded", "load_model"]


@dataclass(frozen=True)
class Loaded:
    """A model and the sampling arguments that the catalogue suggests for it."""

    model: Model
    suggested: dict[str, Any]


def load_model(
    name: str, options: LoadOptions, *, revision: str | None = None, offline: bool = False
) -> Loaded:
    """Find a model, download it with a bar if need be, and load it; errors as `slmq.load`."""
    import slmq.hub as hub

    with Downloads() as progress:
        found = hub.resolve(name, revision=revision, local_files_only=offline, progress=progress)
    with spinner(f"loading {found.name}"):
        from slmq.engine.opening import open_engine
        from slmq.generation.model import Model

        engine = open_engine(found.path, options, name=found.name)
    suggested = {} if found.entry is None else dict(found.entry.sampling)
    return Loaded(Model(engine), suggested)
