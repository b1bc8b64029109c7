"""Guesses at what comes next, from what was said before (Saxena, "Prompt lookup decoding", 2023),
and how many guesses of any kind are worth their rows.

An answer that copies from its prompt repeats runs of tokens. The place where most of the last
tokens stood before tells what followed them there; the model checks all of that in one run, whose
further rows cost less than runs of their own. What is kept is what the sampler draws at each place,
so guesses never change an answer, they only cost time when they are wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

__all__ = ["Lookup", "Trust", "best_length"]

PLACES = 8  # at most that are looked at for the one that is most alike
ALIKE = 16  # tokens in a row, beyond which more tell nothing
LONGEST = 12  # tokens guessed at a time
PAUSE_AFTER = 2  # misses in a row, after which guessing pauses, each time twice as long
LONGEST_PAUSE = 64
FIRST_TRUST = 0.7  # in a draft model that has not said anything
# The more tokens were the same, the likelier the next one is, too: from so many on, with such a
# chance where SmolLM2 copies less than its summaries do and more than its stories. Each answer
# learns its own; these count as SEEN of its tokens.
KINDS = ((2, 0.3), (3, 0.5), (4, 0.65), (5, 0.75), (8, 0.85), (ALIKE, 0.9))
SEEN = 4.0
FADING = 0.95  # of what was seen, with each token of its kind
FASTER = 1.05  # with guesses than without, or there are none: times are not known so well
BETTER = 1.02  # with one more than without it
KIND_OF = tuple(max(0, sum(least <= n for least, _ in KINDS) - 1) for n in range(ALIKE + 1))


class Lookup:
    """Where the last tokens stood before, and how often what followed them was right."""

    def __init__(self) -> None:
        self._latest: dict[int, int] = {}  # by pair of tokens, the last place behind one
        self._earlier = [0, 0]  # for each place, the one before it behind the same pair; 0: none
        self._right = [chance * SEEN for _, chance in KINDS]
        self._seen = [SEEN] * len(KINDS)
        self._alike = 0  # tokens that were the same where the last guess comes from
        self._unasked: tuple[int, int, int] | None = None  # a place, a guess for it, tokens alike

    def chance(self, alike: int) -> float:
        """How likely what follows is right, where so many tokens were the same."""
        kind = KIND_OF[min(alike, ALIKE)]
        return self._right[kind] / self._seen[kind]

    def guess(
        self, ids: Sequence[int], most: int, step_s: float, row_s: float, least: float = 0.0
    ) -> list[int]:
        """Tokens that may follow `ids`: as many as pay, and none that are less likely than `least`.

        Parameters
        ----------
        ids : sequence of int
            Prompt and answer so far.
        most : int
        step_s, row_s : float
            Seconds of a run beside its rows, and of a row.
        least : float
            Chance of somebody else's guesses.
        """
        self._note(ids)
        if self._unasked is not None and self._unasked[0] < len(ids):
            # What was not asked is known by now: so guessing begins again once it would pay.
            at, token, alike = self._unasked
            self._learn(alike, ids[at] == token)
            self._unasked = None
        place, alike = self._find(ids)
        if place == 0:
            return []
        chances = [self.chance(alike + n) for n in range(min(most, LONGEST))]
        count = best_length(chances, step_s, row_s)
        if count == 0 or chances[0] < least:
            self._unasked = (len(ids), ids[place], alike)
            return []
        self._alike = alike
        period = len(ids) - place  # what is said over and over is longer than what stood there
        return [ids[place + i % period] for i in range(count)]

    def told(self, guessed: int, right: int) -> None:
        """Learn how many of the last guess's tokens were right."""
        for n in range(min(guessed, right + 1)):
            self._learn(self._alike + n, n < right)

    def _learn(self, alike: int, right: bool) -> None:
        kind = KIND_OF[min(alike, ALIKE)]
        self._right[kind] = self._right[kind] * FADING + right
        self._seen[kind] = self._seen[kind] * FADING + 1.0

    def _note(self, ids: Sequence[int]) -> None:
        """Take up what was said since."""
        latest, earlier = self._latest, self._earlier
        for end in range(len(earlier), len(ids) + 1):
            pair = ids[end - 2] << 32 | ids[end - 1]
            earlier.append(latest.get(pair, 0))
            latest[pair] = end

    def _find(self, ids: Sequence[int]) -> tuple[int, int]:
        """The latest place where most of the last tokens stood before, and how many; 0 if none."""
        best = longest = 0
        place = self._earlier[len(ids)]
        for _ in range(PLACES):
            if place == 0:
                break
            alike = 2
            while alike < min(place, ALIKE) and ids[place - alike - 1] == ids[-alike - 1]:
                alike += 1
            if alike > longest:
                best, longest = place, alike
            place = self._earlier[place]
        return best, longest


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
        count = best_length(repeat(self.rate, most), step_s, row_s, guess_s)
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


def best_length(chances: Iterable[float], step_s: float, row_s: float, guess_s: float = 0.0) -> int:
    """How many guesses make tokens come fastest, of which each is right with such a chance.

    With n guesses a run takes step + (n + 1) row + n guess and gives 1 + c1 + c1 c2 + ... tokens.
    """
    best, best_speed = 0, FASTER / BETTER / (step_s + row_s)
    tokens, all_right = 1.0, 1.0
    for n, chance in enumerate(chances, 1):
        all_right *= chance
        tokens += all_right
        speed = tokens / (step_s + (n + 1) * row_s + n * guess_s)
        if speed > best_speed * BETTER:
            best, best_speed = n, speed
    return best
