"""From the options of a command to a loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slmq.cli.output import Downloads, spinner

if TYPE_CHECKING:
    from slmq.engine.options import LoadOptions
    from slmq.generation.model import Model

__all__ = ["load_model"]


def load_model(
    name: str,
    options: LoadOptions,
    *,
    revision: str | None = None,
    offline: bool = False,
    sampling: dict[str, Any] | None = None,
) -> Model:
    """Find a model, download it with a bar if need be, and load it; errors as `slmq.load`.

    An adapter that the sampling options name by its path is loaded, too, and its name put there.
    """
    import slmq.hub as hub

    with Downloads() as progress:
        found = hub.resolve(name, revision=revision, local_files_only=offline, progress=progress)
        draft = None
        if options.draft is not None:
            draft = hub.resolve(options.draft, local_files_only=offline, progress=progress)
    with spinner(f"loading {found.name}"):
        from slmq.generation.loading import open_model

        model = open_model(found, options, draft)
        if sampling is not None and "adapter" in sampling:
            sampling["adapter"] = model.load_adapter(sampling["adapter"])
        return model
