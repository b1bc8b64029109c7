"""`slmq.load`: from the name of a model to one that answers."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from slmq.engine.options import LoadArgs, LoadOptions
from slmq.generation.model import Model
from slmq.settings import from_keywords, takes

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from slmq.hub import ResolvedModel

__all__ = ["load", "open_model"]


@takes(LoadOptions)
def load(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    **options: Unpack[LoadArgs],
) -> Model:
    """Load a model, downloading it first if need be.

    Parameters
    ----------
    model : str or path
        Name in the catalogue, hub id ``"org/name"``, folder with a checkpoint, or .gguf file.
    revision : str, optional
        Revision (branch, tag or commit) of the hub repository.
    local_files_only : bool
        Never use the network.
    **options
        See `slmq.engine.options.LoadOptions`.

    Returns
    -------
    Model

    Raises
    ------
    ModelNotFoundError
        If nothing answers to this name.
    CheckpointError, UnsupportedModelError, DownloadError, TokenizerError
        If the model is damaged, of a kind that slmq lacks, or cannot be fetched; or if the draft
        model has another tokenizer.
    TypeError, ValueError
        If an option is unknown or has a wrong value; before anything is looked for.
    """
    import slmq.hub as hub

    checked = from_keywords(LoadOptions, options)
    found = hub.resolve(model, revision=revision, local_files_only=local_files_only)
    small = None
    if checked.draft is not None:
        small = hub.resolve(checked.draft, local_files_only=local_files_only)
    return open_model(found, checked, small)


def open_model(
    found: ResolvedModel, options: LoadOptions, draft: ResolvedModel | None = None
) -> Model:
    """The model that was found, with its draft model beside it; errors as `load`."""
    from slmq.engine.opening import open_engine

    engine = open_engine(found.path, options, name=found.name)
    if draft is None:
        return Model(engine)
    small = open_engine(draft.path, replace(options, n_ctx=None, kv_bytes=None), name=draft.name)
    return Model(engine, draft=small)
