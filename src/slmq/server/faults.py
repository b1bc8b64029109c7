"""From exceptions to status codes, headers, and error bodies in the words of three APIs.

A fault of the client is always 4xx: the official clients repeat a request after 5xx, 409 and 429.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from slmq.batch.answers import error_body
from slmq.errors import BusyError, ClosedError, DeadlineError, ModelNotFoundError

__all__ = ["RefusedError", "fault_body", "status_of"]

DO_NOT_RETRY = {"x-should-retry": "false"}
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class RefusedError(Exception):
    """A request that HTTP itself refuses.

    Parameters
    ----------
    status : int
    message : str
    code : str, optional
    headers : mapping of str to str, optional
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})


def status_of(error: Exception) -> tuple[int, dict[str, str]]:
    """Status code and headers of an answer that is an error."""
    if isinstance(error, RefusedError):
        return error.status, error.headers
    if isinstance(error, BusyError):
        return 429, {"retry-after": str(max(1, math.ceil(error.retry_after_s or 1.0)))}
    if isinstance(error, ModelNotFoundError):
        return 404, {}
    if isinstance(error, DeadlineError):
        return 504, DO_NOT_RETRY
    if isinstance(error, ClosedError):
        return 503, {"retry-after": "1"}
    status, _ = error_body(error)
    return status, {} if status < 500 else DO_NOT_RETRY


def fault_body(path: str, error: Exception) -> dict[str, Any]:
    """The body of an error, in the words of the API that a path belongs to."""
    status, _ = status_of(error)
    body = _openai(error, status)
    message = body["error"]["message"]
    if path.startswith("/api/"):
        return {"error": message}
    if path.startswith("/v1/messages"):
        kind = ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else ANTHROPIC_TYPES[400])
        return {"type": "error", "error": {"type": kind, "message": message}}
    return body


def _openai(error: Exception, status: int) -> dict[str, Any]:
    kind, code = "invalid_request_error", None
    if isinstance(error, RefusedError):
        code = error.code
        kind = {401: "authentication_error", 403: "permission_error"}.get(status, kind)
        kind = "unavailable_error" if status == 503 else kind
    elif isinstance(error, BusyError):
        kind, code = "rate_limit_error", "rate_limit_exceeded"
    elif isinstance(error, ModelNotFoundError):
        code = "model_not_found"
    elif isinstance(error, DeadlineError):
        kind, code = "timeout_error", "deadline_exceeded"
    elif isinstance(error, ClosedError):
        kind, code = "unavailable_error", "closing"
    else:
        _, body = error_body(error)
        if status >= 500:  # what went wrong inside is for the log
            body["error"]["message"] = f"the server failed: {type(error).__name__}"
        return body
    param = "model" if code == "model_not_found" else None
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}
