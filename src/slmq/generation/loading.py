"""`slmq.load`: from the name of a model to one that answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import slmq.hub as hub
from slmq.engine.options import LoadArgs, LoadOptions
from slmq.generation.bars import LineBar, visible
from slmq.generation.model import Model
from slmq.generation.scheduler import MOST_WAITING
from slmq.settings import from_keywords, takes

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["load", "open_model"]


@takes(LoadOptions)
def load(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: bool | hub.Progress = True,
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
    progress : bool or slmq.hub.Progress
        True draws a bar where stderr is a terminal or a notebook, and nothing elsewhere; False
        keeps quiet. An object gets what a download reports.
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
    checked = from_keywords(LoadOptions, options)
    with _news(progress) as news:
        found = hub.resolve(
            model, revision=revision, local_files_only=local_files_only, progress=news
        )
        small = None
        if checked.draft is not None:
            small = hub.resolve(checked.draft, local_files_only=local_files_only, progress=news)
        if isinstance(news, LineBar):
            news.update(f"loading {found.name}", 0, None)
        return open_model(found, checked, small)


def open_model(
    found: hub.ResolvedModel,
    options: LoadOptions,
    draft: hub.ResolvedModel | None = None,
    *,
    most_waiting: int = MOST_WAITING,
) -> Model:
    """The model that was found, with its draft model beside it; errors as `load`.

    So many requests may wait (`most_waiting`) before one more is a BusyError.
    """
    from slmq.engine.opening import open_engine
    from slmq.plan.tuning import ensure_tuned

    ensure_tuned(hub.cache_dir())
    engine = open_engine(found.path, options, name=found.name)
    suggested = {} if found.entry is None else found.entry.sampling
    if draft is None:
        return Model(engine, suggested=suggested, most_waiting=most_waiting)
    small = open_engine(draft.path, replace(options, n_ctx=None, kv_bytes=None), name=draft.name)
    return Model(engine, draft=small, suggested=suggested, most_waiting=most_waiting)


@contextmanager
def _news(progress: bool | hub.Progress) -> Iterator[hub.Progress | None]:
    if not isinstance(progress, bool):
        yield progress
    elif progress and visible():
        bar = LineBar("bytes")
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield None
