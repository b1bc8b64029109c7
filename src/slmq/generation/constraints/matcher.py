"""Where an answer stands in its grammar: which tokens may come, which one must, and whether to end.

Of what has to come, the tokens are those of the tokenizer: `forced` has them. They are no choice,
so nothing is drawn for them, however they are computed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slmq.errors import ConstraintError
from slmq.generation.constraints.faults import checked, library_faults
from slmq.generation.constraints.grammar import Grammar

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Constraint", "Matcher"]


class Constraint:
    """A grammar, compiled for a vocabulary: what answers start from; made by `Vocabulary.compile`.

    It never changes, so requests and threads may share it.

    Attributes
    ----------
    grammar : Grammar
    left_out : tuple of str
        What is not enforced of a lenient schema.
    """

    def __init__(
        self, inner: Any, n_vocab: int, grammar: Grammar, left_out: tuple[str, ...] = ()
    ) -> None:
        self.grammar = grammar
        self.left_out = left_out
        self._first = Matcher(inner, n_vocab, grammar.about)

    def matcher(self) -> Matcher:
        """The state of an answer that has not begun."""
        return self._first.copy()


class Matcher:
    """The state of an answer. One thread at a time.

    Attributes
    ----------
    forced : deque of int
        The tokens that have to come next, if there is no choice.
    complete : bool
        Whether nothing may follow.
    spent_s : float
        Seconds that all this has taken.
    """

    def __init__(self, inner: Any, n_vocab: int, about: str) -> None:
        self._inner = inner
        self._n_vocab = n_vocab
        self._about = about
        self._allowed: NDArray[np.int32] | None = None
        self._fault: Exception | None = None  # of computing that, told when it is asked for
        self.forced: deque[int] = deque()
        self.complete = False
        self.spent_s = 0.0
        self._look()
        if not (self.forced or self.complete):
            self.allowed()

    def copy(self) -> Matcher:
        """A state of its own."""
        twin = Matcher.__new__(Matcher)
        twin.__dict__.update(self.__dict__)
        twin._inner = self._inner.deep_copy()
        twin.forced = deque(self.forced)
        twin.spent_s = 0.0
        return twin

    @property
    def accepting(self) -> bool:
        """Whether the answer may end here: not before what is forced has come."""
        with library_faults(self._about):
            return not self.forced and bool(self._inner.is_accepting())

    @property
    def due(self) -> bool:
        """Whether there will be a choice, and nobody has computed between which tokens."""
        return not (self.known or self.forced or self.complete)

    @property
    def known(self) -> bool:
        """Whether `allowed` has been computed for this state."""
        return self._allowed is not None or self._fault is not None

    def prepare(self) -> None:
        """Compute what `allowed` will give, or the error that it will raise."""
        try:
            self._compute()
        except Exception as error:
            self._fault = error

    def allowed(self) -> NDArray[np.int32]:
        """The tokens that may come next: bit i % 32 of word i // 32; made once for each state.

        Raises
        ------
        ConstraintError
            If the grammar is too complex to tell within its limits.
        """
        if self._fault is not None:
            raise self._fault
        return self._compute() if self._allowed is None else self._allowed

    def allows(self, token: int) -> bool:
        """Whether `allowed` has this token: a microsecond, where all of them may take a hundred."""
        began_s = time.perf_counter()
        with library_faults(self._about):
            found = bool(self._inner.validate_tokens([token]))
        self.spent_s += time.perf_counter() - began_s
        return found

    def accept(self, token: int) -> None:
        """Go on with a token that is allowed, or the first of those that are forced.

        Raises
        ------
        ConstraintError
            If it is neither, or the grammar is too complex to go on.
        """
        if self.forced:
            if token != self.forced[0]:
                raise ConstraintError(
                    f"{self._about}: expected the token {self.forced[0]}, got {token}"
                )
            self.forced.popleft()
            if not self.forced:
                self.complete = bool(self._inner.is_stopped())
            return
        self._allowed = None
        began_s = time.perf_counter()
        self._consume([token])
        self._look()
        self.spent_s += time.perf_counter() - began_s

    def fitting(self, tokens: Sequence[int]) -> list[int]:
        """As many of these tokens, from the first, as may come next."""
        if self.forced:
            same = 0
            while same < min(len(tokens), len(self.forced)) and tokens[same] == self.forced[same]:
                same += 1
            return list(tokens[:same])
        with library_faults(self._about):
            return list(tokens[: self._inner.validate_tokens(list(tokens))])

    def _compute(self) -> NDArray[np.int32]:
        began_s = time.perf_counter()
        words = np.empty((self._n_vocab + 32) // 32, np.int32)  # of one token more
        with library_faults(self._about):
            self._inner.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            checked(self._inner, self._about)
        self._allowed = words[: (self._n_vocab + 31) // 32]
        self.spent_s += time.perf_counter() - began_s
        return self._allowed

    def _consume(self, tokens: list[int]) -> None:
        with library_faults(self._about):
            self._inner.consume_tokens(tokens)
            checked(self._inner, self._about)

    def _look(self) -> None:
        """Take up what has to come now; nothing may follow before that has come."""
        with library_faults(self._about):
            stopped = bool(self._inner.is_stopped())
            if not stopped:
                self.forced.extend(self._inner.compute_ff_tokens())
                checked(self._inner, self._about)
        if self.forced:
            self._consume(list(self.forced))
        self.complete = stopped and not self.forced
