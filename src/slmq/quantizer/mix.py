"""Which format for which matrix, so that a number of bits per weight does the least damage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slmq.formats import FORMATS

__all__ = ["Choice", "Mix", "choose_formats"]


@dataclass(frozen=True)
class Choice:
    """A matrix of `size` weights in rows of `columns`, and the damage that each format does."""

    name: str
    size: int
    damage: Mapping[str, float]
    columns: int = 256

    def bits(self, fmt: str) -> float:
        """Bits per weight in a format."""
        return FORMATS[fmt].bits_in_rows(self.columns)


@dataclass(frozen=True)
class Mix:
    """A format for every matrix.

    Attributes
    ----------
    formats : dict of str to str
    bits : float
        Per weight; 0 where nothing was chosen.
    front : tuple of (float, float)
        Bits per weight and damage of every mix on the way from the fewest bits to the most.
    """

    formats: dict[str, str]
    bits: float = 0.0
    front: tuple[tuple[float, float], ...] = ()


def choose_formats(choices: Sequence[Choice], bits: float) -> Mix:
    """The mix of least damage with at most `bits` per weight on average.

    Damages add up. From the cheapest format of every matrix on, the step that saves the most damage
    per stored bit is taken, as long as the bits last (Fox, 1966): the best mix for each number of
    bits that it passes. What is left then goes to the best of the smaller steps that it pays for.

    Raises
    ------
    ValueError
        Not even the cheapest formats have so few bits.
    """
    steps = [(i, step) for i, choice in enumerate(choices) for step in _hull(choice)]
    formats = [_options(choice)[0] for choice in choices]
    total = sum(choice.size for choice in choices)
    stored = sum(
        choice.bits(fmt) * choice.size for fmt, choice in zip(formats, choices, strict=True)
    )
    damage = sum(choice.damage[fmt] for fmt, choice in zip(formats, choices, strict=True))
    if stored > bits * total:
        raise ValueError(f"bits: expected at least {stored / total:.4g}, got {bits:g}")
    front = [(stored / total, damage)]
    chosen = list(formats)
    spent = stored
    stuck: set[int] = set()  # their next step is too dear
    # Of equal gains the earlier matrix comes first, and of a matrix the smaller step.
    for i, step in sorted(steps, key=lambda item: (-item[1].gain, item[0], item[1].bits)):
        stored += step.bits * choices[i].size
        damage -= step.saved
        front.append((stored / total, damage))
        cost = step.bits * choices[i].size
        if i in stuck or spent + cost > bits * total:
            stuck.add(i)
            continue
        chosen[i] = step.format
        spent += cost
    formats_of = {choice.name: fmt for choice, fmt in zip(choices, chosen, strict=True)}
    return Mix(formats_of, spent / total, tuple(front))


@dataclass(frozen=True)
class _Step:
    format: str  # that it leads to
    bits: float  # per weight, that it adds
    saved: float
    gain: float  # saved damage per stored bit


def _options(choice: Choice) -> list[str]:
    """Formats by bits, without those that cost more and damage as much."""
    found: list[str] = []
    for fmt in sorted(choice.damage, key=lambda fmt: (choice.bits(fmt), choice.damage[fmt])):
        if not found or choice.damage[fmt] < choice.damage[found[-1]]:
            found.append(fmt)
    return found


def _hull(choice: Choice) -> list[_Step]:
    """Steps of falling gain: formats that a mix of their neighbours beats are left out."""
    steps: list[_Step] = []
    path: list[str] = []
    for fmt in _options(choice):
        while path:
            step = _step(choice, path[-1], fmt)
            if not steps or step.gain < steps[-1].gain:
                steps.append(step)
                break
            steps.pop()
            path.pop()
        path.append(fmt)
    return steps


def _step(choice: Choice, old: str, new: str) -> _Step:
    bits = choice.bits(new) - choice.bits(old)
    saved = choice.damage[old] - choice.damage[new]
    return _Step(new, bits, saved, saved / (bits * choice.size))
