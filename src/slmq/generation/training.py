"""`slmq.train`: from the name of a model and a folder of texts to an adapter, or a model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import slmq.hub as hub
from slmq.engine.training.options import TrainArgs, TrainOptions
from slmq.settings import WeightFormat, from_keywords, takes

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from slmq.engine.training.events import Listener, Trained

__all__ = ["train"]


@takes(TrainOptions)
def train(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    adapter_path: str | os.PathLike[str] = "adapters",
    *,
    format: WeightFormat | None = None,
    teacher: str | os.PathLike[str] | None = None,
    resume: bool = False,
    on_event: Listener | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    **options: Unpack[TrainArgs],
) -> Trained:
    """Train a low-rank adapter (LoRA) of a model, or all of its weights, on this CPU.

    The same options, data and model give the same bytes, on every CPU and with any number of
    threads, also when the run was killed and gone on with.

    Parameters
    ----------
    model : str or path
        Name in the catalogue, hub id, folder or .gguf file; its own weights stay as they are. With
        ``type="full"`` a folder of safetensors with floats.
    data : path
        A folder with ``train.jsonl``, and ``valid.jsonl`` and ``test.jsonl`` if there are such;
        ``.csv`` and ``.txt`` are read, too.
    adapter_path : path
        The folder to write: an adapter that PEFT and `Model.load_adapter` load, or with
        ``type="full"`` a model as the one that was given; and the state of the run.
    format : str, optional
        What weights become while an adapter is trained on them; None keeps them as they are
        stored.
    teacher : str or path, optional
        A model of the same tokens. What it expects of every next token is learned, instead of the
        tokens that the texts have; losses are divergences from it.
    resume : bool
        Go on with the run in `adapter_path`.
    on_event : callable, optional
        Called with every `Forecast`, `Report`, `Evaluation` and `Saved` of
        `slmq.engine.training.events`. If it returns False the run ends, with its state saved.
    revision : str, optional
        Revision (branch, tag or commit) of the hub repository.
    local_files_only : bool
        Never use the network.
    **options
        See `slmq.engine.training.options.TrainOptions`.

    Returns
    -------
    Trained

    Raises
    ------
    DataError
        A sample cannot be read; file and line are named.
    CheckpointError
        The model is damaged, the loss is no number, or the state is of another run.
    UnsupportedModelError
        A step of the model has no gradient here, or all weights of one without floats are to be
        trained.
    WriteError
        The folder is not empty, or the disk is full.
    TypeError, ValueError
        If an option is unknown or has a wrong value; before anything is looked for.
    """
    checked = from_keywords(TrainOptions, options)
    found = hub.resolve(model, revision=revision, local_files_only=local_files_only)
    if teacher is not None:
        teacher = hub.resolve(teacher, local_files_only=local_files_only).path
    from slmq.engine.training.run import Run

    run = Run(
        found.path,
        data,
        adapter_path,
        checked,
        name=found.name,
        format=format,
        resume=resume,
        listener=on_event,
        teacher=teacher,
    )
    return run.finish()
