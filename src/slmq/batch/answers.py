"""From results to the words of OpenAI's answers, and to the lines of its batch output.

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

__all__ = [
    "answer_line",
    "call_body",
    "chat_choice",
    "chat_logprobs",
    "error_body",
    "error_line",
    "fault_line",
    "text_choices",
    "text_logprobs",
    "usage",
]

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
    if asked.chat:
        choices = [chat_choice(i, result, tokenizer) for i, result in enumerate(results)]
    else:
        choices = text_choices(asked, results, tokenizer)
    body = {
        "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{digest}",
        "object": "chat.completion" if asked.chat else "text_completion",
        "created": 0,
        "model": model,
        "choices": choices,
        "usage": usage(results, asked.n),
    }
    return _line(digest, custom_id, 200, body)


def usage(results: Sequence[GenerationResult], n: int) -> dict[str, Any]:
    """Tokens of a request; a prompt counts once, however many (`n`) answers it got."""
    prompt_tokens = sum(result.prompt_tokens for result in results[::n])
    completion_tokens = sum(result.generated_tokens for result in results)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def error_line(digest: str, custom_id: str, error: Exception) -> dict[str, Any]:
    """The line of a request that was refused, or failed."""
    return _line(digest, custom_id, *error_body(error))


def error_body(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status code and body of a request that was refused, or failed."""
    ours = not isinstance(error, (ValueError, TypeError, TemplateError, *CODES))
    body = {
        "error": {
            "message": str(error),
            "type": "server_error" if ours else "invalid_request_error",
            "param": error.param if isinstance(error, RequestError) else None,
            "code": CODES.get(type(error)),
        }
    }
    return (SERVER_ERROR if ours else BAD_REQUEST), body


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


def chat_choice(index: int, result: GenerationResult, tokenizer: Tokenizer) -> dict[str, Any]:
    """An answer to a chat."""
    message: dict[str, Any] = {"role": "assistant", "content": result.text}
    if result.reasoning:
        message["reasoning_content"] = result.reasoning
    if result.tool_calls:
        message["content"] = result.text or None
        message["tool_calls"] = [call_body(call) for call in result.tool_calls]
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(result.logprobs, tokenizer),
        "finish_reason": result.finish_reason,
    }


def chat_logprobs(
    entries: Sequence[TokenLogprob] | None, tokenizer: Tokenizer
) -> dict[str, Any] | None:
    """Log-probabilities of tokens in an answer to a chat."""
    if entries is None:
        return None
    return {
        "content": [
            {
                **_token(entry.token, entry.logprob, tokenizer),
                "top_logprobs": [_token(*top, tokenizer) for top in entry.top],
            }
            for entry in entries
        ]
    }


def call_body(call: ToolCall) -> dict[str, Any]:
    """A call with its arguments as JSON text."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def text_choices(
    asked: Asked, results: Sequence[GenerationResult], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Completions of texts."""
    return [
        {
            "index": i,
            "text": asked.said_before(i, tokenizer) + result.text,
            "logprobs": text_logprobs(result.logprobs, tokenizer),
            "finish_reason": result.finish_reason,
        }
        for i, result in enumerate(results)
    ]


def text_logprobs(
    entries: Sequence[TokenLogprob] | None, tokenizer: Tokenizer, start: int = 0
) -> dict[str, Any] | None:
    """Log-probabilities of tokens in a completion, the first of which stands at `start`."""
    if entries is None:
        return None
    texts = [_text(entry.token, tokenizer) for entry in entries]
    offsets = [start + sum(len(text) for text in texts[:i]) for i in range(len(texts))]
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
