"""How a model is asked for a label: prompts that begin alike, and the labels as their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slmq.engine.engine import Engine
from slmq.engine.sequence import common_length
from slmq.errors import DataError, printable
from slmq.generation.prompts import encode_text

__all__ = ["Example", "LabelPrompt"]

Example = tuple[str, str]  # a text and its label
PROBE = "a text"


@dataclass(frozen=True)
class LabelPrompt:
    """A question about a text, and the labels that may answer it.

    Attributes
    ----------
    engine : Engine
    instruction : str
        What is asked.
    labels : tuple of str
    examples : tuple of Example
    cut : int
        Tokens at the end of a prompt that a label changes: they belong to the options.
    options : tuple of list of int
        The tokens of every label, in the order of `labels`.
    """

    engine: Engine
    instruction: str
    labels: tuple[str, ...]
    examples: tuple[Example, ...]
    cut: int
    options: tuple[list[int], ...]

    @classmethod
    def of(
        cls,
        engine: Engine,
        labels: Sequence[str],
        *,
        instruction: str | None,
        examples: Sequence[Example] = (),
        question: str | None = None,
    ) -> LabelPrompt:
        """Make one; `question` is its name among several."""
        if instruction is None:
            listed = ", ".join(labels[:-1]) + f" or {labels[-1]}"
            asked = "Which label fits this text" if question is None else f"{question} of this text"
            instruction = f"{asked}: {listed}? Answer with the label only."
        return cls(engine, instruction, tuple(labels), tuple(examples), 0, ())._with_options()

    def context(self, text: str) -> list[int]:
        """The tokens that a label follows; errors as for a prompt of `Model.generate`."""
        ids = self._encode(self._prompt(text))
        return ids[: len(ids) - self.cut]

    @property
    def _chat(self) -> bool:
        return self.engine.tokenizer.chat_template is not None

    def _asked(self, text: str) -> str:
        # The text first: small models answer what they read last, and questions share the text.
        if self._chat:
            return f"{text}\n\n{self.instruction}"
        return f"Text: {text}\n{self.instruction}\nLabel:"

    def _prompt(self, text: str) -> str:
        if not self._chat:
            shown = [f"{self._asked(one)} {label}\n\n" for one, label in self.examples]
            return "".join([*shown, self._asked(text)])
        turns: list[Mapping[str, Any]] = []
        for one, label in self.examples:
            turns.append({"role": "user", "content": self._asked(one)})
            turns.append({"role": "assistant", "content": label})
        turns.append({"role": "user", "content": self._asked(text)})
        return self.engine.tokenizer.render_chat(turns)

    def _encode(self, text: str) -> list[int]:
        return encode_text(self.engine, text, add_special=not self._chat)

    def _with_options(self) -> LabelPrompt:
        """The tokens of the labels, as they are behind a prompt: each is read with its end."""
        prompt = self._prompt(PROBE)
        before = self._encode(prompt)
        whole = [self._encode(prompt + self._answer(label)) for label in self.labels]
        shared = len(before)
        for ids in whole:
            shared = min(shared, _common(before, ids))
        options = [ids[shared:] for ids in whole]
        if any(
            one == other[: len(one)] for one in options for other in options if one is not other
        ):
            # One begins like another: what tells them apart is where they end.
            options = [[*ids, self._end()] for ids in options]
        for label, ids in zip(self.labels, options, strict=True):
            if options.count(ids) > 1 or not ids:
                raise DataError(f"label {printable(label)!r} has the same tokens as another")
        return LabelPrompt(
            self.engine,
            self.instruction,
            self.labels,
            self.examples,
            len(before) - shared,
            tuple(options),
        )

    def _answer(self, label: str) -> str:
        return label if self._chat else f" {label}"

    def _end(self) -> int:
        """What follows a label: the end of a turn, or of a line."""
        tokenizer = self.engine.tokenizer
        if self._chat:
            turn = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
            whole = tokenizer.render_chat(turn, add_generation_prompt=False)
            rest = tokenizer.encode(whole.rpartition(PROBE)[2], add_special=False)
            if rest:
                return rest[0]
        return min(tokenizer.eos_ids, default=tokenizer.encode("\n", add_special=False)[-1])


def _common(one: list[int], other: list[int]) -> int:
    return common_length(np.array(one, np.int32), np.array(other, np.int32))
