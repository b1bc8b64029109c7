"""Special tokens: ids that a file names, and ends of turns, known by how they are written.

Files name one end token, and models end their turns with others as well: an instruct model keeps
that of the base model it was made from, and Llama 3 has three. A model that emits any of these has
finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from slmq.tokenizer.pieces import SPACE_MARK

__all__ = ["END_OF_TURN", "answer_ends", "usable_ids"]

log = logging.getLogger("slmq")

# What files write where they mean none: -1, as is and in unsigned numbers of 32 bits.
NONE = (-1, (1 << 32) - 1)

BAR = "\N{FULLWIDTH VERTICAL LINE}"

END_OF_TURN = frozenset(
    {
        "<|endoftext|>",  # GPT-2, Qwen, StableLM, Phi
        "<|end_of_text|>",  # Llama 3, Granite
        "<|eot_id|>",  # Llama 3
        "<|eom_id|>",  # Llama 3.1: a message to a tool
        "<|im_end|>",  # ChatML: SmolLM2, Qwen, StableLM
        "<|end|>",  # Phi-3
        "<end_of_turn>",  # Gemma
        "<turn|>",  # Gemma 4
        f"<{BAR}end{SPACE_MARK}of{SPACE_MARK}sentence{BAR}>",  # DeepSeek
        "<EOT>",
    }
)

# gpt-oss answers with several messages, and ends them all with a token that ends turns elsewhere.
MESSAGES = ("<|channel|>", "<|message|>", "<|return|>")
END_OF_MESSAGE = "<|end|>"
END_OF_MESSAGES = ("<|return|>", "<|call|>")


def answer_ends(ends: Iterable[int], id_of: Callable[[str], int | None]) -> set[int]:
    """The ids of these that end an answer, and others that do; `id_of` finds a special token."""
    found = set(ends)
    if all(id_of(token) is not None for token in MESSAGES):
        found -= {id_of(END_OF_MESSAGE)}
        found |= {i for i in map(id_of, END_OF_MESSAGES) if i is not None}
    return found


def usable_ids(value: object, n_vocab: int, where: str) -> list[int]:
    """The token ids that a file names, one or a list; a warning says which are none.

    Merges, tiny test models and old converters leave ids of another vocabulary behind. The answer
    does not need them: a token that does not exist never comes.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    usable, wrong = [], []
    for token in values:
        if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < n_vocab:
            usable.append(token)
        elif token not in (None, *NONE):
            wrong.append(token)
    if wrong:
        log.warning(
            "%s is %.80r, expected ids from 0 to %d: it is not used", where, value, n_vocab - 1
        )
    return usable
