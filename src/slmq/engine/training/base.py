"""The model that is trained, or adapted: its steps, and which of its weights learn."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slmq._native as _native
from slmq.checkpoint import Layout, open_checkpoint
from slmq.engine.options import MAX_CONTEXT
from slmq.engine.training.full import FullWeights, open_full
from slmq.engine.training.layers import last_layers, layer_of
from slmq.engine.training.low_rank import LowRanks, LowRankSize
from slmq.engine.training.network import Network
from slmq.engine.training.options import TrainOptions
from slmq.engine.training.parameters import Parameters
from slmq.engine.training.steps import LinearPart
from slmq.engine.training.tape import Tape
from slmq.errors import UnsupportedModelError
from slmq.models.adapted import wishes_of
from slmq.models.loading import LoadedWeights, load_weights
from slmq.models.registry import family_of, refuse_encoder
from slmq.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Base", "network_of", "open_base"]


@dataclass(frozen=True)
class Base:
    """An opened model.

    Attributes
    ----------
    name : str
        What it is called.
    weights : LoadedWeights
    tokenizer : Tokenizer
    files : list
        Names and sizes of its files: what a state is checked with.
    threads : int
    path : Path
        Its file or folder.
    full : FullWeights, optional
        All of its weights, or its last layers', if these are trained.
    """

    name: str
    weights: LoadedWeights
    tokenizer: Tokenizer
    files: list[list[Any]]
    threads: int
    path: Path = Path()
    full: FullWeights | None = None


def open_base(
    path: str | os.PathLike[str], options: TrainOptions, *, name: str, format: str | None = None
) -> Base:
    """Open a model for training: of any format, or of floats if all weights are trained.

    Raises
    ------
    CheckpointError, UnsupportedModelError, TokenizerError
    ValueError
        `format` rounds weights that are to be trained.
    """
    if options.type == "full" and format not in (None, "f32"):
        raise ValueError(f"format: expected None where all weights are trained, got {format!r}")
    threads = int(_native.resolve_threads(options.n_threads)["threads"])
    with open_checkpoint(Path(path)) as checkpoint:
        family, _ = family_of(checkpoint)
        refuse_encoder(family, checkpoint.path, "training")
        tokenizer = load_tokenizer(checkpoint)
        full = None
        if options.type == "full":
            weights, full = open_full(checkpoint, threads=threads, num_layers=options.num_layers)
        else:
            weights = load_weights(checkpoint, threads=threads, format=format)
        files: list[list[Any]] = [[file.path.name, file.size] for file in checkpoint.files]
    return Base(name, weights, tokenizer, files, threads, Path(path), full)


def network_of(
    base: Base, options: TrainOptions, *, rows: int, isa: str | None = None, adapted: bool = True
) -> Network:
    """The model's steps with what is trained of them: pairs, all weights, or nothing.

    Raises
    ------
    UnsupportedModelError
        A step of the model has no gradient, or a weight takes no pair.
    ValueError
        `keys` names no module of the model.
    """
    loaded = base.weights
    tape = Tape(min(loaded.config.max_positions, MAX_CONTEXT))
    tape.finish(loaded.family.forward(tape, loaded.weights, loaded.config))
    parameters: Parameters = base.full or _low_ranks(base, tape, options, adapted=adapted)
    operators = _native.Operators(base.threads, isa)
    return Network(tape, parameters, operators, rows=rows, recompute=options.grad_checkpoint)


def _low_ranks(base: Base, tape: Tape, options: TrainOptions, *, adapted: bool) -> LowRanks:
    """A pair for every weight that is adapted."""
    loaded = base.weights
    own = {wish.stored: wish.order for _, wish in wishes_of(loaded, Layout())}
    sizes = [
        size._replace(order=own.get(f"{size.module}.weight"))
        for size in (_adapted(tape.linears, options) if adapted else ())
    ]
    return LowRanks(sizes, options.rank, options.alpha, options.seed)


def _adapted(linears: list[LinearPart], options: TrainOptions) -> list[LowRankSize]:
    """The weights of the last layers that `keys` name, in order."""
    inner = [part for part in linears if layer_of(part.name) is not None]
    layers = last_layers((part.name for part in inner), options.num_layers)
    chosen = []
    unused = set(options.keys)
    for part in inner:
        module = re.sub(r"\.weight(\[.*)?$", "", part.name)
        named = [key for key in options.keys if module == key or module.endswith(f".{key}")]
        unused -= set(named)
        if layer_of(part.name) not in layers or (options.keys and not named):
            continue
        if not part.name.endswith(".weight"):
            raise UnsupportedModelError(
                f"{module}: several matrices in one cannot be trained yet; name others with keys "
                f"(--keys)"
            )
        chosen.append(LowRankSize(module, part.matrix.n, part.matrix.k))
    if unused:
        known = sorted({re.sub(r"\.weight(\[.*)?$", "", p.name).split(".")[-1] for p in inner})
        raise ValueError(
            f"keys: expected modules of this model ({', '.join(known)}), got {sorted(unused)[0]!r}"
        )
    return chosen
