"""A sequence: tokens whose keys and values are cached."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.errors import ClosedError

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

PAGE = 64  # positions in a page of the cache


class TokenSequence:
    """Tokens whose keys and values are cached, in order.

    Attributes
    ----------
    tokens : array of int
        What is cached: as long as the pages are filled.
    last_logits : float32[n_vocab] or None
        Of the last token, if they were asked for.
    adapter : _native.Adapter or None
        What adds to the model's layers for these tokens; for good, once there are some.
    """

    def __init__(self, native: _native.KvSequence, adapter: _native.Adapter | None = None) -> None:
        self._native: _native.KvSequence | None = native
        self.tokens = array("i")
        self.last_logits: F32 | None = None
        self.adapter = adapter

    @property
    def native(self) -> _native.KvSequence:
        """The native pages. Raises ClosedError once closed."""
        if self._native is None:
            raise ClosedError("this sequence is closed")
        return self._native

    def kept(self, n: int) -> int:
        """The most tokens up to `n` that `truncate` and `fork` can go back to.

        That is `n`, unless the model has a state beside the cache: then states are kept at some
        lengths only, among them the present one and that before the last run.
        """
        return self.native.kept(n)

    def truncate(self, n: int) -> None:
        """Keep the first `n` tokens; ValueError for an `n` that is not `kept`."""
        self.native.truncate(n)
        del self.tokens[n:]
        self.last_logits = None

    def fork(self, length: int | None = None) -> TokenSequence:
        """A second sequence with the first `length` tokens (all by default).

        Their cache is shared until one of the two continues.

        Raises
        ------
        ValueError
            If `length` is negative, beyond the sequence or not `kept`, or the sequence is closed.
        """
        length = self.native.length if length is None else length
        copy = TokenSequence(self.native.fork(length), self.adapter)
        copy.tokens = self.tokens[:length]
        return copy

    @property
    def pages(self) -> int:
        """Pages of the cache that this sequence holds; one that several share counts for each."""
        return self.native.pages_held

    def pages_needed(self, count: int) -> int:
        """Pages that `count` more tokens would take from the cache."""
        return self.native.pages_needed(count)

    def close(self) -> None:
        """Give the cache pages back."""
        if self._native is not None:
            self._native.truncate(0)
        self._native = None
        self.tokens = array("i")
        self.last_logits = None

    def shared_with(self, ids: I32) -> int:
        """How many tokens of this sequence a fork can take over that is to begin as `ids`."""
        return self.kept(common_length(np.frombuffer(self.tokens, np.int32), ids))


def common_length(one: I32, other: I32) -> int:
    """How many tokens two arrays begin with in common."""
    n = min(len(one), len(other))
    differ = one[:n] != other[:n]
    return int(differ.argmax()) if differ.any() else n
