"""The worker's end of the protocol: one JSON object a line, requests in, answers out.

A request is ``{"op": NAME, ...arguments}``; its answer is what the engine's function of that name
returns, or ``{"error": TEXT}``. Between requests a worker sleeps in a read of its standard input.
It runs in the environment of its engine, so this file needs the standard library only.

Every engine answers

- ``load(model, positions, batch, options)``: loads a GGUF file for prompts of up to `positions`
  tokens and up to `batch` sequences; returns ``engine``, ``version``, ``vocabulary``, ``load_s``
  and ``settings`` (a dictionary to print).
- ``use_threads(threads)``: what follows runs with as many.
- ``prompt(tokens)``: reads a prompt into an empty context, logits of its last token; returns
  ``seconds``.
- ``steps(sequences)``: feeds equally long sequences into empty contexts, the next token of each in
  one step, logits for all of them; returns ``seconds``.
- ``answers(prompts, count)``: reads prompts of one length, all at once, and draws `count` tokens
  behind each, the likeliest, as the engine serves several users; returns ``seconds``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["serve"]


def serve(operations: Mapping[str, Callable[..., Any]]) -> None:
    """Answers requests until the standard input ends; errors are answers too.

    Parameters
    ----------
    operations : mapping of str to callable
        Called with the request's other fields; what they return must fit into JSON (None is {}).
    """
    # Native code prints as it likes: only we keep the way to the reader.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(operations, line)) + "\n")
        answers.flush()


def _answer(operations: Mapping[str, Callable[..., Any]], line: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
        op = request.pop("op")
        if op not in operations:
            return {"error": f"expected one of {', '.join(operations)}, got {op!r}"}
        return operations[op](**request) or {}
    except MemoryError:
        return {"error": "out of memory"}
    except Exception as error:  # the other side tells the user
        return {"error": f"{type(error).__name__}: {error}"}
