"""A call that a model has made, and the pieces of an answer that its reader tells apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Mark", "Said", "ToolCall", "call_id"]

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
ID_LENGTH = 9  # of letters and digits: what the templates of Mistral insist on


@dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for.

    Attributes
    ----------
    id : str
        Nine letters and digits, other ones for every call of a conversation, and the same whenever
        the same answer is made.
    name : str
        Of the tool.
    arguments : dict
        The arguments, parsed.
    """

    id: str
    name: str
    arguments: dict[str, Any]

    @property
    def message(self) -> dict[str, Any]:
        """The call as an entry of ``tool_calls`` in a message of the assistant."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


class Mark(str):
    """The text of a marker that came as one token of its own, so that it is no ordinary text."""

    __slots__ = ()


@dataclass
class Said:
    """What a piece of an answer turned out to be."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, other: Said) -> None:
        """Append what came later."""
        self.text += other.text
        self.reasoning += other.reasoning
        self.calls += other.calls


def call_id(salt: bytes, index: int) -> str:
    """An id for the call of this number in the answer to a prompt that `salt` stands for."""
    number = int.from_bytes(hashlib.sha256(salt + index.to_bytes(4, "little")).digest(), "little")
    signs = []
    for _ in range(ID_LENGTH):
        number, sign = divmod(number, len(ALPHABET))
        signs.append(ALPHABET[sign])
    return "".join(signs)
