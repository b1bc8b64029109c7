"""Stop strings in a stream of text pieces, wherever the borders of the pieces fall."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["StopMatcher"]


class StopMatcher:
    """Passes text through until a stop string is complete; never lets part of one out.

    The match is the one that is complete first and, among those that end there, the longest; so
    the outcome depends on the text alone, not on how it is cut into pieces. Only the longest
    ending that may be the start of a stop string is held back.

    Parameters
    ----------
    stops : iterable of str
        Non-empty stop strings; none lets everything through.

    Attributes
    ----------
    matched : str or None
        The stop string that was found; text after it is dropped.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = tuple(stops)
        if "" in self._stops:
            raise ValueError("expected non-empty stop strings, got ''")
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Add a piece; return the text that is now certain to belong to the answer."""
        if self.matched is not None:
            return ""
        self._held += text
        found = self._first_match()
        if found is not None:
            start, self.matched = found
            answer, self._held = self._held[:start], ""
            return answer
        safe = len(self._held) - self._partial_length()
        answer, self._held = self._held[:safe], self._held[safe:]
        return answer

    def flush(self) -> str:
        """End of the stream: return what was held back."""
        answer, self._held = self._held, ""
        return answer

    def _first_match(self) -> tuple[int, str] | None:
        best: tuple[int, int, str] | None = None  # end, start, stop
        for stop in self._stops:
            start = self._held.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else best[1:]

    def _partial_length(self) -> int:
        """Length of the longest ending of the held text that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
