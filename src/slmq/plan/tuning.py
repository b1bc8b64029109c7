"""How far ahead weights are fetched: measured once on each CPU, kept in the cache folder.

No result depends on it. `slmq doctor` shows what is used and why; docs/design/tuning.md tells how
it is chosen.
"""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import slmq._native as _native
from slmq.machine.disk import lock_file, publish
from slmq.machine.runtime import cpu_name

__all__ = ["Setting", "Tuned", "best_of", "ensure_tuned", "measure", "tune", "tuned"]

Ahead = tuple[int, bool]  # bytes; into the second-level cache only

SWITCH = "SLMQ_TUNE"
FOLDER, LOCK = "tuning", "lock"
FORMATS = ("q4g32s", "q8g32s")  # one of each class of weights
CLASSES = ("4 to 6 bits", "8 bits and floats")
ROWS = (1, 2, 4, 8)  # one of each class of rows
ROWS_SAID = ("1 row", "2 rows", "3 and 4 rows", "5 to 16 rows")
CANDIDATES: tuple[Ahead, ...] = (
    (0, False),
    (2048, False),
    (4608, False),
    (6144, False),
    (9216, True),
    (16384, True),
)
TIMED_BYTES = 96 << 20  # more than caches hold, for each core
MOST_S = 2.0
FEWEST_ROUNDS = 5
WORTH = 0.97  # of the built-in setting's time: less is spread, not speed


@dataclass(frozen=True)
class Setting:
    """What one class of weights and rows uses.

    Attributes
    ----------
    weights, rows : str
        Of the class.
    nbytes : int
        Ahead of their use; 0: weights are not fetched ahead.
    second_level : bool
        Whether into the second-level cache only.
    gain : float
        Speed over the built-in setting's; 1.0 where that is used.
    """

    weights: str
    rows: str
    nbytes: int
    second_level: bool
    gain: float


@dataclass(frozen=True)
class Tuned:
    """The settings of a kernel table, and why these.

    Attributes
    ----------
    isa : str
    why : str
        "built in", "measured on ...", "SLMQ_TUNE=0".
    settings : tuple of Setting
    """

    isa: str
    why: str
    settings: tuple[Setting, ...]


def tuned(isa: str | None = None) -> Tuned:
    """What plans of this process use.

    Parameters
    ----------
    isa : str, optional
        A kernel table; by default the one that runs.
    """
    name = _native.active_isa() if isa is None else isa
    kept = _state.kept.get(name)
    if kept is None:
        return Tuned(name, _state.why, tuple(_settings(_native.default_tuning(name), {})))
    return kept


def ensure_tuned(cache: Path, *, measuring: bool = True) -> None:
    """Use what was measured on this CPU; measure it, for two seconds at most, if nobody has.

    Called before a model loads, from any thread; the first call of a process does the work. Without
    a place to keep the result, or while another process measures, the built-in settings stay.

    Parameters
    ----------
    cache : Path
        The cache folder, which keeps results: a file for each CPU, table and version.
    measuring : bool
        False only looks for a result.

    Raises
    ------
    ValueError
        If SLMQ_TUNE is neither 0 nor 1.
    """
    with _state.lock:
        if _state.done:
            return
        if not _wanted():
            _state.why = f"built in ({SWITCH}=0)"
        elif (found := _kept(cache / FOLDER, _native.active_isa())) is not None:
            _use(found)
        elif measuring:
            _measure_once(cache / FOLDER)
        else:
            _state.why = "built in (not measured yet: the first model that loads does)"
            return
        _state.done = True


def tune(cache: Path) -> Tuned:
    """Measure now, whatever is kept, use the result and keep it.

    Raises
    ------
    OSError
        If `cache` cannot be written.
    """
    with _state.lock:
        found = measure(_native.active_isa())
        _keep(cache / FOLDER, found)
        _use(found)
        _state.done = True
    return found


def measure(isa: str, seconds: float = MOST_S) -> Tuned:
    """Try the candidates on this thread; the built-in setting stays where none is clearly faster.

    Each round takes all candidates in turn, so that a neighbour on the machine slows all of them.
    One is taken if its median beats the built-in one's by 3% and it won in most rounds.
    """
    timer = _native.AheadTimer(isa, TIMED_BYTES)
    builtin = _native.default_tuning(isa)
    chosen: list[list[Ahead]] = []
    gains = dict[tuple[int, int], float]()
    for w, fmt in enumerate(FORMATS):
        chosen.append([])
        for r, rows in enumerate(ROWS):
            first = builtin[w][r]
            aheads = [first, *(one for one in CANDIDATES if one != first)]
            end_s = time.perf_counter() + seconds / (len(FORMATS) * len(ROWS))
            rounds = list[Sequence[float]]()
            while len(rounds) < FEWEST_ROUNDS or time.perf_counter() < end_s:
                rounds.append(timer.time(fmt, rows, aheads))
            place, gain = best_of(rounds)
            chosen[-1].append(aheads[place])
            gains[w, r] = gain
    why = f"measured by slmq {version('slmq')} on {cpu_name()}"
    return Tuned(isa, why, tuple(_settings(chosen, gains)))


def best_of(rounds: Sequence[Sequence[float]]) -> tuple[int, float]:
    """The candidate to take, and its speed over the first, which stays unless one clearly wins.

    Parameters
    ----------
    rounds : sequence of sequence of float
        Seconds of each candidate, round by round.
    """
    columns = list(zip(*rounds, strict=True))
    medians = [statistics.median(column) for column in columns]
    place = min(range(len(medians)), key=medians.__getitem__)
    won = sum(times[place] < times[0] for times in rounds)
    if medians[place] > WORTH * medians[0] or 4 * won < 3 * len(rounds):
        return 0, 1.0
    return place, medians[0] / medians[place]


def _settings(
    lists: Sequence[Sequence[Ahead]], gains: dict[tuple[int, int], float]
) -> list[Setting]:
    return [
        Setting(CLASSES[w], ROWS_SAID[r], nbytes, second, gains.get((w, r), 1.0))
        for w, row in enumerate(lists)
        for r, (nbytes, second) in enumerate(row)
    ]


# What is kept -------------------------------------------------------------------------------


class _State:
    """Of this process: whether it was asked for, and what is used."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.done = False
        self.why = "built in"
        self.kept: dict[str, Tuned] = {}


_state = _State()


def _wanted() -> bool:
    said = os.environ.get(SWITCH, "1")
    if said not in ("0", "1"):
        raise ValueError(f"{SWITCH}: expected 0 (built-in settings) or 1 (measured), got {said!r}")
    return said == "1"


def _use(found: Tuned) -> None:
    aheads = [(setting.nbytes, setting.second_level) for setting in found.settings]
    rows = len(ROWS)
    _native.set_tuning(found.isa, [aheads[i : i + rows] for i in range(0, len(aheads), rows)])
    _state.kept[found.isa] = found


def _measure_once(folder: Path) -> None:
    """As the only process that does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock_file(folder / LOCK)
    except OSError as error:
        _state.why = f"built in (a measurement cannot be kept: {error})"
        return
    if held is None:
        _state.why = "built in (another process measures)"
        return
    try:
        isa = _native.active_isa()
        found = _kept(folder, isa)  # by who had the lock before
        if found is None:
            found = measure(isa)
            _keep(folder, found)
        _use(found)
    except OSError as error:
        _state.why = f"built in (a measurement cannot be kept: {error})"
    finally:
        os.close(held)


def _file(folder: Path, isa: str) -> Path:
    of = json.dumps([cpu_name(), isa, version("slmq"), [list(one) for one in CANDIDATES]])
    return folder / f"{isa}-{sha256(of.encode()).hexdigest()[:16]}.json"


def _keep(folder: Path, found: Tuned) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = _file(folder, found.isa)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write((json.dumps(asdict(found), indent=2) + "\n").encode())
            publish(file, temporary, path, folder)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _kept(folder: Path, isa: str) -> Tuned | None:
    """What a file says; None if there is none, or if it says something else."""
    try:
        said = json.loads(_file(folder, isa).read_text("utf-8"))
        settings = tuple(Setting(**setting) for setting in said["settings"])
        found = Tuned(said["isa"], said["why"], settings)
        pairs = [(s.weights, s.rows) for s in settings]
        known = {(s.nbytes, s.second_level) for s in settings} <= _known(isa)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    whole = pairs == [(w, r) for w in CLASSES for r in ROWS_SAID]
    return found if found.isa == isa and whole and known else None


def _known(isa: str) -> set[Ahead]:
    """All that a measurement may choose: a file is data, not a wish."""
    return {*CANDIDATES, *(one for row in _native.default_tuning(isa) for one in row)}
