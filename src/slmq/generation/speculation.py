"""Guesses at what comes next, from what was said before (Saxena, "Prompt lookup decoding", 2023),
and how many guesses of any kind are worth their rows.

An answer that copies from its prompt repeats runs of tokens. The latest place where the last tokens
stood before tells what followed them there; the model checks all of that in one run, whose further
rows are nearly free while the run is bound by reading weights. What is kept is what the sampler
draws at each place, so guesses never change an answer, they only cost time when they are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Lookup", "Trust", "best_length"]

NGRAM = 3  # tokens that must have stood before in the same order
LONGEST = 12  # tokens guessed at a time
PAUSE_AFTER = 2  # misses in a row, after which guessing pauses, each time twice as long
LONGEST_PAUSE = 64
FIRST_TRUST = 0.7  # in a draft model that has not said anything


class Lookup:
    """Where runs of three tokens stood last, and how often guesses were right.

    Attributes
    ----------
    rate : float
        Share of guessed tokens that were right, of late.
    """

    def __init__(self) -> None:
        self.rate = 0.5
        self._places: dict[tuple[int, ...], int] = {}
        self._seen = 0
        self._pauses = _Pauses()
        self._unasked: tuple[int, int] | None = None  # a place, and what would be guessed there

    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens that may follow `ids`; none while guessing pauses."""
        place = self._find(ids)
        if self._unasked is not None and self._unasked[0] < len(ids):
            # What was not asked is known by now: so guessing begins again once it would pay.
            at, token = self._unasked
            self.rate += 0.2 * ((ids[at] == token) - self.rate)
            self._unasked = None
        resting = self._pauses.resting()
        if place is None:
            return []
        if resting or most <= 0:
            self._unasked = (len(ids), ids[place])
            return []
        period = len(ids) - place  # what is said over and over is longer than what stood there
        return [ids[place + i % period] for i in range(min(most, LONGEST))]

    def told(self, guessed: int, right: int) -> None:
        """Learn how many of a guess's tokens were right."""
        self.rate += 0.2 * (right / guessed - self.rate)
        self._pauses.told(right)

    def _find(self, ids: Sequence[int]) -> int | None:
        """What follows the last place where the end of `ids` stood before; notes new places."""
        place = None
        for end in range(max(self._seen, NGRAM), len(ids) + 1):
            run = tuple(ids[end - NGRAM : end])
            place = self._places.get(run)
            self._places[run] = end
        self._seen = max(self._seen, len(ids) + 1)
        return place


class Trust:
    """How often the guesses of a draft model were right for an answer, and when it rests.

    Attributes
    ----------
    rate : float
        Share of right ones among those behind which all were right, of late.
    """

    def __init__(self) -> None:
        self.rate = FIRST_TRUST
        self._pauses = _Pauses()

    def length(self, step_s: float, row_s: float, guess_s: float, most: int) -> int:
        """How many guesses to make, each of which takes the draft model `guess_s`."""
        if self._pauses.resting():
            return 0
        count = best_length(self.rate, step_s, row_s, most, guess_s)
        if count == 0:
            # Some runs later it may try again: an answer can become easy to guess.
            self.rate += 0.01 * (FIRST_TRUST - self.rate)
        return count

    def told(self, guessed: int, right: int) -> None:
        """Learn how many of a run's guesses were right."""
        tried = min(guessed, right + 1)
        self.rate += (1.0 - 0.9**tried) * (right / tried - self.rate)
        self._pauses.told(right)


class _Pauses:
    """Runs in which nothing is guessed, after misses: twice as many each time."""

    def __init__(self) -> None:
        self._misses = self._pause = self._rest = 0

    def resting(self) -> bool:
        """Whether nothing is guessed in this run."""
        resting = self._rest > 0
        self._rest -= resting
        return resting

    def told(self, right: int) -> None:
        """Learn how many guesses were right, none being a miss."""
        self._misses = 0 if right else self._misses + 1
        if right:
            self._pause = 0
        elif self._misses >= PAUSE_AFTER:
            self._pause = min(max(4, 2 * self._pause), LONGEST_PAUSE)
            self._rest = self._pause


def best_length(rate: float, step_s: float, row_s: float, most: int, guess_s: float = 0.0) -> int:
    """How many guesses make tokens come fastest, if each is right with probability `rate`.

    With n guesses a run takes step + (n + 1) row + n guess and gives 1 + rate + ... + rate^n
    tokens.
    """
    best, best_speed = 0, 1.0 / (step_s + row_s)
    tokens, chance = 1.0, 1.0
    for n in range(1, most + 1):
        chance *= rate
        tokens += chance
        speed = tokens / (step_s + (n + 1) * row_s + n * guess_s)
        if speed > best_speed * 1.02:
            best, best_speed = n, speed
    return best
