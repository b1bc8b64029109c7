"""A checkpoint's weights, read by its family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from slmq.checkpoint import Checkpoint
from slmq.errors import CheckpointError
from slmq.models.family import Family, ModelConfig
from slmq.models.parts.gguf import Weights
from slmq.models.registry import errors_of, family_of
from slmq.weights.placement import MemoryChoice
from slmq.weights.reader import WeightReader


@dataclass(frozen=True)
class LoadedWeights:
    """Packed weights of a family, ready to be recorded, any number of times.

    Attributes
    ----------
    family : Family
    config : ModelConfig
        Of that family.
    weights : Weights
        What `family.forward` reads.
    parameters, weight_bytes : int
    formats : dict of str to int
        Packed bytes per weight format.
    memory : MemoryChoice
    """

    family: Family[Any]
    config: ModelConfig
    weights: Weights
    parameters: int
    weight_bytes: int
    formats: dict[str, int]
    memory: MemoryChoice


@dataclass(frozen=True)
class OpenedWeights:
    """A family's reader of a checkpoint, and the configuration: as it is stored, and checked."""

    reader: WeightReader
    family: Family[Any]
    config: ModelConfig
    raw_config: dict[str, Any]


def open_weights(
    checkpoint: Checkpoint,
    *,
    threads: int,
    format: str | None = None,
    memory: str | None = None,
    keep: bool = True,
    found: tuple[Family[Any], dict[str, Any]] | None = None,
) -> OpenedWeights:
    """Makes ready to read a checkpoint's weights; parameters and errors as `WeightReader`.

    `found` is what `family_of` finds, or what stands for it.
    """
    family, raw_config = family_of(checkpoint) if found is None else found
    with errors_of(checkpoint):
        config = family.Config.from_dict(raw_config)
    names = family.GGUF.name if checkpoint.layout.gguf_terms else _names(family, checkpoint)
    reader = WeightReader(
        checkpoint, names, format=format, threads=threads, memory=memory, keep=keep
    )
    return OpenedWeights(reader, family, config, raw_config)


def load_weights(
    checkpoint: Checkpoint, *, threads: int, format: str | None = None, memory: str | None = None
) -> LoadedWeights:
    """Packs a checkpoint's weights, or maps or reads those of a packed folder.

    Raises
    ------
    CheckpointError, UnsupportedModelError
    ValueError
        For an unknown `format` or `memory`.
    """
    opened = open_weights(checkpoint, threads=threads, format=format, memory=memory)
    reader = opened.reader
    with tensors_of(checkpoint):
        weights = opened.family.load(reader, opened.config)
    reader.tell()
    return LoadedWeights(
        opened.family,
        opened.config,
        weights,
        reader.parameters,
        reader.packed_nbytes,
        dict(reader.packed_formats),
        reader.memory,
    )


@contextmanager
def tensors_of(checkpoint: Checkpoint) -> Iterator[None]:
    """Names the checkpoint in errors of a family that found no tensors to read."""
    try:
        yield
    except CheckpointError as error:
        if error.file is not None:
            raise
        raise CheckpointError(error.message, file=checkpoint.path, tensor=error.tensor) from None


def _names(family: Family[Any], checkpoint: Checkpoint) -> Callable[[str], str]:
    """From a family's names of tensors to those of a folder.

    Folders that were saved from the model without its head lack what all other names begin with.
    """
    embed = next(name for name, gguf in family.GGUF.names.items() if gguf == "token_embd")
    prefix, _, module = embed.partition(".")
    # A quantized embedding is stored in parts.
    stems = {name.rpartition(".")[0] for name in checkpoint.tensors}
    if embed in stems or module not in stems:
        return lambda name: name
    return lambda name: name.removeprefix(f"{prefix}.")
