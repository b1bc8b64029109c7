"""What a training run tells while it goes on, and what it gives in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Evaluation", "Event", "Forecast", "Listener", "Report", "Saved", "Trained"]


@dataclass(frozen=True)
class Forecast:
    """What a run will take, told before its first step and after one that was tried.

    Attributes
    ----------
    iters : int
        Batches that are left.
    tokens : int
        That they and the evaluations hold.
    parameters : int
        That are trained.
    seconds : float
    memory_bytes : int
        Most that the process will hold.
    """

    iters: int
    tokens: int
    parameters: int
    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Report:
    """The latest batches.

    Attributes
    ----------
    iteration, iters : int
        Batches that are done, and all of them.
    loss : float
        The mean of their targets, in nats.
    learning_rate, gradient_norm : float
        Of the latest update.
    tokens_per_s : float
    peak_bytes : int or None
    seconds_left : float
    """

    iteration: int
    iters: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_s: float
    peak_bytes: int | None
    seconds_left: float


@dataclass(frozen=True)
class Evaluation:
    """The mean loss of a split that is not learned from."""

    iteration: int
    split: str
    loss: float


@dataclass(frozen=True)
class Saved:
    """The adapter or the model, and the state, were written."""

    iteration: int
    path: Path


Event = Forecast | Report | Evaluation | Saved
Listener = Callable[[Event], object]
"""Called with every event; returning False ends the run after the batch, with its state saved."""


@dataclass(frozen=True)
class Trained:
    """A run that is over.

    Attributes
    ----------
    path : Path
        The adapter, a folder of PEFT; or the model.
    iterations : int
        Batches that were learned from; what is written is of `best` where patience chose.
    best : int
    reports : list of Report
    evaluations : list of Evaluation
    seconds : float
        Of this process.
    tokens : int
        Learned from, in all.
    peak_bytes : int or None
    """

    path: Path
    iterations: int
    best: int
    reports: list[Report]
    evaluations: list[Evaluation]
    seconds: float
    tokens: int
    peak_bytes: int | None
