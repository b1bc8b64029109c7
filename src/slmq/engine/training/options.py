"""How a model is trained: every option once, checked before anything is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict

from slmq.engine.options import threads_option
from slmq.settings import (
    Check,
    check_options,
    integer,
    number,
    one_of,
    option,
    shown,
    truth,
)

__all__ = ["Optimizers", "Schedules", "TrainArgs", "TrainOptions", "Types"]

Schedules = Literal["constant", "linear", "cosine"]
Optimizers = Literal["adamw", "adam"]
Types = Literal["lora", "full"]
ADAPTING = ("rank", "alpha", "keys")  # options of adapters alone
MOST_RANK = 256  # as the native code
# What changes no bit of the result, only when it is looked at and written, and how fast it comes.
ASIDE = (
    "steps_per_report", "steps_per_eval", "save_every", "val_batches", "grad_checkpoint",
    "n_threads",
)  # fmt: skip


def _names(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (tuple, list)):
        raise TypeError(f"{name}: expected a list of names of modules, got {shown(value)}")
    if not all(isinstance(key, str) and key for key in value):
        raise TypeError(f"{name}: expected names of modules, got {value!r:.100}")
    return tuple(value)


def _split(texts: list[str]) -> tuple[str, ...]:
    return tuple(key for text in texts for key in text.split(","))


def _all_or(name: str, value: object) -> int:
    if value == -1 and not isinstance(value, bool):
        return -1
    found: int = _count("an int >= 1, or -1 for all")(name, value)
    return found


def _count(expected: str) -> Check:
    return integer(expected, low=1, high=10**9)


def _epochs(name: str, value: object) -> float | None:
    if value is None:
        return None
    found: float = number("a number > 0", above=0.0, high=1e6)(name, value)
    return found


class TrainArgs(TypedDict, total=False):
    """The keyword arguments of `TrainOptions`, for type checkers."""

    type: Types
    rank: int
    alpha: float
    keys: tuple[str, ...]
    num_layers: int
    iters: int
    epochs: float | None
    batch_size: int
    grad_accumulation_steps: int
    max_seq_length: int
    truncate: bool
    mask_prompt: bool
    learning_rate: float
    schedule: Schedules
    warmup: int
    optimizer: Optimizers
    weight_decay: float
    max_grad_norm: float
    seed: int
    steps_per_report: int
    steps_per_eval: int
    save_every: int
    val_batches: int
    patience: int
    grad_checkpoint: bool
    n_threads: int | None


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a model is trained. Names and defaults are mlx-lm's, where it has them.

    Parameters
    ----------
    type : {"lora", "full"}
        What is trained: an adapter of low rank, beside weights of any format; or all weights of a
        model of floats.
    rank : int
        Of an adapter: rank of the two matrices that are added to a weight.
    alpha : float
        Of an adapter: their product counts alpha / rank times.
    keys : sequence of str
        Modules to adapt, by the ends of their names ("q_proj"). Empty: all linear layers.
    num_layers : int
        Layers to train, counted from the last; -1: all. With type "full" the weights of these
        layers are trained and nothing else.
    iters : int
        Batches to learn from.
    epochs : float, optional
        How often to see every sample, instead of `iters`.
    batch_size : int
        Samples in a batch.
    grad_accumulation_steps : int
        Batches for one update.
    max_seq_length : int
        Most tokens of a sample. Longer ones are left out and counted, or cut with `truncate`.
    truncate : bool
        Cut longer samples.
    mask_prompt : bool
        Learn completions, and the last messages of chats, only.
    learning_rate : float
        The highest learning rate.
    schedule : {"constant", "linear", "cosine"}
        Behind the warm-up it stays, or falls to 0 along a line or half a wave.
    warmup : int
        Updates in which the learning rate rises from 0.
    optimizer : {"adamw", "adam"}
        Adam (Kingma and Ba, 2015) is AdamW without weight decay.
    weight_decay : float
        Of AdamW, for all that is trained.
    max_grad_norm : float
        Longer gradients are scaled to this norm; 0: never.
    seed : int
        Of the first values and of the order of samples.
    steps_per_report : int
        Batches between two reports.
    steps_per_eval : int
        Batches between two evaluations.
    save_every : int
        Batches between two checkpoints.
    val_batches : int
        Batches of an evaluation; -1: all.
    patience : int
        Stop after so many evaluations without a better loss, and keep what was best; 0: never.
    grad_checkpoint : bool
        Compute every layer anew on the way back: less memory, more time, the same bits.
    n_threads : int, optional
        Threads; None takes the physical cores that this process may use. Not a bit depends on it.

    Raises
    ------
    TypeError
        If a value has the wrong type.
    ValueError
        If a value is out of range.
    """

    type: Types = option(
        "lora",
        "What is trained: lora (an adapter of low rank) or full (all weights, of floats).",
        one_of(Types),
    )
    rank: int = option(
        8, "Rank of the matrices.", integer(f"an int in 1..{MOST_RANK}", low=1, high=MOST_RANK)
    )
    alpha: float = option(
        16.0, "Their product counts alpha / rank times.", number("a number > 0", above=0.0)
    )
    keys: tuple[str, ...] = option(
        (),
        "Modules to adapt, such as q_proj,v_proj. Default: all linear layers.",
        _names,
        parse=_split,
        metavar="NAMES",
    )
    num_layers: int = option(-1, "Layers to train, counted from the last; -1: all.", _all_or)
    iters: int = option(1000, "Batches to learn from.", _count("an int >= 1"))
    epochs: float | None = option(
        None, "How often to see every sample, instead of --iters.", _epochs
    )
    batch_size: int = option(
        4, "Samples in a batch.", integer("an int in 1..4096", low=1, high=4096)
    )
    grad_accumulation_steps: int = option(
        1, "Batches for one update.", integer("an int in 1..4096", low=1, high=4096)
    )
    max_seq_length: int = option(
        2048,
        "Most tokens of a sample; longer ones are left out.",
        integer("an int in 2..1048576", low=2, high=1 << 20),
    )
    truncate: bool = option(False, "Cut longer samples instead.", truth)
    mask_prompt: bool = option(
        False, "Learn completions, and the last messages of chats, only.", truth
    )
    learning_rate: float = option(
        1e-5, "The highest learning rate.", number("a number in 0..1000", low=0.0, high=1e3)
    )
    schedule: Schedules = option(
        "constant",
        "What the learning rate does behind the warm-up: constant, linear or cosine.",
        one_of(Schedules),
    )
    warmup: int = option(
        0,
        "Updates in which the learning rate rises from 0.",
        integer("an int >= 0", low=0, high=10**9),
    )
    optimizer: Optimizers = option(
        "adamw", "adamw, or adam, which has no weight decay.", one_of(Optimizers)
    )
    weight_decay: float = option(
        0.01, "Weight decay of AdamW.", number("a number in 0..1", low=0.0, high=1.0)
    )
    max_grad_norm: float = option(
        1.0, "Scale longer gradients to this norm; 0: never.", number("a number >= 0", low=0.0)
    )
    seed: int = option(
        0,
        "Seed of the first values and of the order of samples.",
        integer("an int in 0..2**63 - 1", low=0, high=2**63 - 1),
    )
    steps_per_report: int = option(10, "Batches between two reports.", _count("an int >= 1"))
    steps_per_eval: int = option(200, "Batches between two evaluations.", _count("an int >= 1"))
    save_every: int = option(100, "Batches between two checkpoints.", _count("an int >= 1"))
    val_batches: int = option(25, "Batches of an evaluation; -1: all.", _all_or)
    patience: int = option(
        0,
        "Stop after so many evaluations without a better loss; 0: never.",
        integer("an int >= 0", low=0, high=10**6),
    )
    grad_checkpoint: bool = option(
        False, "Compute every layer anew on the way back: less memory, more time.", truth
    )
    n_threads: int | None = threads_option()

    def __post_init__(self) -> None:
        check_options(self)
        for name in ADAPTING if self.type == "full" else ():
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name}: expected nothing where all weights are trained (type 'full'), got "
                    f"{getattr(self, name)!r}"
                )

    def lasting(self) -> dict[str, Any]:
        """What the bits of the result depend on: a run is only gone on with by the same."""
        values = {name: value for name, value in asdict(self).items() if name not in ASIDE}
        return values | {"keys": sorted(self.keys)}
