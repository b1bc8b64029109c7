"""What a new prompt shares with the one before is not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmq.engine.engine import Engine
    from slmq.engine.sequence import Sequence as EngineSequence


class PrefixCache:
    """A sequence kept between prompts: what a new prompt shares with it is not computed again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sequence: EngineSequence | None = None

    def prepare(self, prompt: Sequence[int]) -> tuple[EngineSequence, int]:
        """The sequence, cut to the longest common prefix, and the length of that.

        At least the last token of the prompt stays to be fed, for its logits.
        """
        if self._sequence is None:
            self._sequence = self._engine.sequence()
        held = self._sequence.tokens
        limit = min(len(held), len(prompt) - 1)
        shared = 0
        while shared < limit and held[shared] == prompt[shared]:
            shared += 1
        self._sequence.truncate(shared)
        return self._sequence, shared

    def drop(self) -> None:
        """Give the sequence back."""
        sequence, self._sequence = self._sequence, None
        if sequence is not None:
            sequence.close()
