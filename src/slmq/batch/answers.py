"""From results to the lines of OpenAI's batch output.

Nothing in a line depends on when or how it was computed: no times, no counts of cached tokens, and
`created` is always 0. Ids are hashes of the request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slmq.batch.requests import Asked, RequestError
from slmq.errors import CacheFullError, ContextOverflowError, TemplateError

if TYPE_CHECKING:
    from slmq.generation.results import GenerationResult, TokenLogprob
    from slmq.tokenizer import Tokenizer
    from slmq.tools.calls import ToolCall

__all__ = ["answer_line", "error_line", "fault_line"]

BAD_REQUEST, SERVER_ERROR = 400, 500
CODES: dict[type[Exception], str] = {
    ContextOverflowError: "context_length_exceeded",
    CacheFullError: "cache_full",
}


def answer_line(
    digest: str,
    custom_id: str,
    asked: Asked,
    results: Sequence[GenerationResult],
    model: str,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """The line of a request that was answered; results are in the order of `Asked.answers`."""
    shape = _chat_choice if asked.chat else _text_choice
    # A prompt counts once, however many answers it got.
    prompt_tokens = sum(result.prompt_tokens for result in results[:: asked.n])
    completion_tokens = sum(result.generated_tokens for result in results)
    body = {
        "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{digest}",
        "object": "chat.completion" if asked.chat else "text_completion",
        "created": 0,
        "model": model,
        "choices": [
            {"index": i, **shape(result, tokenizer), "finish_reason": result.finish_reason}
            for i, result in enumerate(results)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
    return _line(digest, custom_id, 200, body)


def error_line(digest: str, custom_id: str, error: Exception) -> dict[str, Any]:
    """The line of a request that was refused, or failed."""
    ours = not isinstance(error, (ValueError, TypeError, TemplateError, *CODES))
    body = {
        "error": {
            "message": str(error),
            "type": "server_error" if ours else "invalid_request_error",
            "param": error.param if isinstance(error, RequestError) else None,
            "code": CODES.get(type(error)),
        }
    }
    return _line(digest, custom_id, SERVER_ERROR if ours else BAD_REQUEST, body)


def fault_line(digest: str, custom_id: str | None, fault: str) -> dict[str, Any]:
    """The line of a line that is no request."""
    return {
        "id": f"batch_req_{digest}",
        "custom_id": custom_id,
        "response": None,
        "error": {"code": "invalid_line", "message": fault},
    }


def _line(digest: str, custom_id: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"batch_req_{digest}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": f"req_{digest}", "body": body},
        "error": None,
    }


def _chat_choice(result: GenerationResult, tokenizer: Tokenizer) -> dict[str, Any]:
    logprobs = None
    if result.logprobs is not None:
        logprobs = {
            "content": [
                {
                    **_token(entry.token, entry.logprob, tokenizer),
                    "top_logprobs": [_token(*top, tokenizer) for top in entry.top],
                }
                for entry in result.logprobs
            ]
        }
    message: dict[str, Any] = {"role": "assistant", "content": result.text}
    if result.reasoning:
        message["reasoning_content"] = result.reasoning
    if result.tool_calls:
        message["content"] = result.text or None
        message["tool_calls"] = [_call(call) for call in result.tool_calls]
    return {"message": message, "logprobs": logprobs}


def _call(call: ToolCall) -> dict[str, Any]:
    """A call with its arguments as JSON text."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _text_choice(result: GenerationResult, tokenizer: Tokenizer) -> dict[str, Any]:
    logprobs = None
    if result.logprobs is not None:
        logprobs = _text_logprobs(result.logprobs, tokenizer)
    return {"text": result.text, "logprobs": logprobs}


def _text_logprobs(entries: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    texts = [_text(entry.token, tokenizer) for entry in entries]
    offsets = [sum(len(text) for text in texts[:i]) for i in range(len(texts))]
    return {
        "tokens": texts,
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [
            {_text(token, tokenizer): logprob for token, logprob in reversed(entry.top)}
            for entry in entries
        ],
        "text_offset": offsets,
    }


def _token(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    spelled = list(tokenizer.token_bytes(token))
    return {"token": _text(token, tokenizer), "logprob": logprob, "bytes": spelled}


def _text(token: int, tokenizer: Tokenizer) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")
