"""Regular expressions whose repetitions would take seconds to unroll."""

from __future__ import annotations

import re

from slmq.errors import ConstraintError

__all__ = ["check_regex"]

MOST_REPEATED = 20_000
COUNT = re.compile(r"\{(\d*)(?:,(\d*))?\}")


def check_regex(about: str, regex: str) -> None:
    """Raise ConstraintError if counted repetitions, unrolled, are too many."""
    found = _unrolled(regex)
    if found > MOST_REPEATED:
        raise ConstraintError(
            f"{about}: repetitions such as {{1000}} add up to {found} signs, expected at most "
            f"{MOST_REPEATED}"
        )


def _unrolled(regex: str) -> int:
    """Signs of an expression whose repetitions are written out."""
    sums = [0]  # of every group that is open
    last = 0  # of what a repetition would repeat
    i = 0
    while i < len(regex):
        sign = regex[i]
        count = COUNT.match(regex, i) if sign == "{" else None
        if count is not None and count.group() != "{}":
            times = max(int(n) for n in count.groups("0") if n) if any(count.groups()) else 1
            sums[-1] += last * max(0, times - 1)
            last *= max(1, times)
            i = count.end()
            continue
        if sign == "(":
            sums.append(0)
            last = 0
        elif sign == ")" and len(sums) > 1:
            last = sums.pop()
            sums[-1] += last
        else:
            if sign == "\\":
                i += 1
            elif sign == "[":
                i = _end_of_class(regex, i)
            last = 1
            sums[-1] += 1
        i += 1
    return sum(sums)


def _end_of_class(regex: str, start: int) -> int:
    """Where the class of characters that begins here ends."""
    i, depth = start + 1, 1
    if regex[i : i + 1] == "^":
        i += 1
    if regex[i : i + 1] == "]":
        i += 1
    while i < len(regex):
        if regex[i] == "\\":
            i += 1
        elif regex[i] == "[":
            depth += 1
        elif regex[i] == "]":
            depth -= 1
            if depth == 0:
                return i
        i += 1
    return i
