"""From what a caller gives (text, token ids or messages) to the token ids of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from slmq.errors import ContextOverflowError
from slmq.tools.speech import Speech, prepare
from slmq.tools.wish import Wish

if TYPE_CHECKING:
    from slmq.engine.engine import Engine

__all__ = [
    "Prompt",
    "encode_text",
    "one_question",
    "prompt_ids",
    "require_room",
    "speech_of",
]

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
LONG_TEXT = 16  # characters for each token of the context: most texts have 3 to 5


def one_question(question: str, system: str | None) -> list[dict[str, str]]:
    """The messages of a conversation that begins."""
    for name, value in (("question", question), ("system", system)):
        if not isinstance(value, str) and (name == "question" or value is not None):
            raise TypeError(f"{name}: expected a str, got {type(value).__name__}")
    messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": question}]


def require_room(engine: Engine, n_prompt: int, n_answer: int) -> None:
    """Raise ContextOverflowError unless prompt and answer fit into the context."""
    if n_prompt + n_answer <= engine.n_ctx:
        return
    holds = f"the context of {engine.name!r} holds {engine.n_ctx}"
    if n_prompt > engine.n_ctx:
        problem, cure = f"the prompt has {n_prompt} tokens, but {holds}", "shorten the prompt"
    elif n_prompt == engine.n_ctx:
        problem = f"the prompt has {n_prompt} tokens and {holds}: there is no room for an answer"
        cure = "shorten the prompt"
    else:
        problem = (
            f"the prompt has {n_prompt} tokens and max_tokens asks for {n_answer} more, but {holds}"
        )
        cure = "lower max_tokens, shorten the prompt"
    raise ContextOverflowError(f"{problem}; {cure} or {_more_context(engine)}")


def _more_context(engine: Engine) -> str:
    trained = engine.info.n_ctx_train
    limit = "" if engine.n_ctx < trained else f" (the model was made for {trained:,})"
    return f"load the model with a larger n_ctx{limit}"


def speech_of(
    engine: Engine, prompt: Prompt, wish: Wish, template: Mapping[str, Any] | None = None
) -> Speech | None:
    """What is said with messages, and what may be answered; None for another kind of prompt."""
    if isinstance(prompt, Sequence) and len(prompt) and isinstance(prompt[0], Mapping):
        messages: Any = prompt  # checked there
        return prepare(engine.tokenizer, messages, wish, template)
    given = {"chat_template_kwargs": template, "thinking": wish.thinking, "dialect": wish.dialect}
    if wish.tools or any(value is not None for value in given.values()):
        name = "tools" if wish.tools else next(n for n, v in given.items() if v is not None)
        raise ValueError(f"{name}: expected a prompt of messages; no template is applied to others")
    return None


def prompt_ids(engine: Engine, prompt: Prompt | Speech) -> list[int]:
    """Token ids of a prompt of any kind; raises for an empty or malformed one."""
    if isinstance(prompt, Speech):
        return encode_text(engine, prompt.prompt, add_special=False)
    if isinstance(prompt, np.ndarray):
        if prompt.ndim != 1 or prompt.dtype.kind not in "iu":
            shape = ", ".join(map(str, prompt.shape))
            raise TypeError(f"prompt: expected int[n] token ids, got {prompt.dtype}[{shape}]")
        prompt = prompt.tolist()
    if isinstance(prompt, (bytes, bytearray)) or not isinstance(prompt, Sequence):
        kind = type(prompt).__name__
        raise TypeError(f"prompt: expected a str, token ids or messages, got {kind}")
    if len(prompt) == 0:
        ids = []
    elif isinstance(prompt, str):
        ids = encode_text(engine, prompt, add_special=True)
    elif isinstance(prompt[0], Mapping):
        messages: Any = prompt  # checked there
        chat = engine.tokenizer.render_chat(messages)
        ids = encode_text(engine, chat, add_special=False)
    else:
        ids = _valid_ids(engine, prompt)
    if not ids:
        raise ValueError("prompt: expected at least one token, got an empty prompt")
    return ids


def encode_text(engine: Engine, text: str, *, add_special: bool) -> list[int]:
    """Token ids of a text, unless it is so long that it cannot fit however it is divided."""
    if len(text) > LONG_TEXT * engine.n_ctx:
        least = engine.tokenizer.least_tokens(text)
        if least > engine.n_ctx:
            raise ContextOverflowError(
                f"the prompt has at least {least} tokens, but the context of {engine.name!r} "
                f"holds {engine.n_ctx}; shorten the prompt or {_more_context(engine)}"
            )
    return engine.tokenizer.encode(text, add_special=add_special)


def _valid_ids(engine: Engine, tokens: Sequence[Any]) -> list[int]:
    if all(isinstance(item, str | Sequence) for item in tokens):
        raise TypeError(
            f"prompt: expected one prompt, got {len(tokens)} of them in a "
            f"{type(tokens).__name__}; map answers many: for result in m.map(prompts): ..."
        )
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, Integral):
            raise TypeError(f"prompt: expected token ids (int), got {type(token).__name__}")
    ids = [int(token) for token in tokens]
    for i in ids:
        if not 0 <= i < engine.n_vocab:
            raise ValueError(f"prompt: expected token ids from 0 to {engine.n_vocab - 1}, got {i}")
    return ids
