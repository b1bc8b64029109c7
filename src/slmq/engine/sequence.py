"""A sequence: tokens whose keys and values are cached."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import slmq._native as _native

F32 = npt.NDArray[np.float32]


class Sequence:
    """Tokens whose keys and values are cached, in order."""

    def __init__(self, native: _native.KvSequence) -> None:
        self._native: _native.KvSequence | None = native
        self.tokens: list[int] = []
        self.last_logits: F32 | None = None

    @property
    def native(self) -> _native.KvSequence:
        """The native pages. Raises ValueError once closed."""
        if self._native is None:
            raise ValueError("this sequence is closed")
        return self._native

    def truncate(self, n: int) -> None:
        """Keeps the first `n` tokens."""
        self.native.truncate(n)
        del self.tokens[n:]
        self.last_logits = None

    def fork(self) -> Sequence:
        """A second sequence with the same tokens; their cache is shared until one continues."""
        copy = Sequence(self.native.fork(self.native.length))
        copy.tokens = list(self.tokens)
        return copy

    def close(self) -> None:
        """Gives the cache pages back."""
        if self._native is not None:
            self._native.truncate(0)
        self._native = None
        self.tokens = []
        self.last_logits = None
