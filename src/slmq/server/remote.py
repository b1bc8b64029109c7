"""Models behind another server that speaks OpenAI's API, asked in a thread.

An answer is taken from its first byte on: until then it can fail, and another model be asked.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from slmq.embedding.routing.config import RoutedModel
from slmq.errors import printable

__all__ = ["RemoteAnswer", "RemoteError", "open_answer"]

MOST_BYTES = 64 << 20  # of an answer
ERROR_BYTES = 4096
CLIENTS_FAULT = (400, 422)


class RemoteError(Exception):
    """A model of another server does not answer.

    Parameters
    ----------
    message : str
    fault : bool
        Whether the request is what is wrong, so that no other model need be asked.
    """

    def __init__(self, message: str, *, fault: bool = False) -> None:
        super().__init__(message)
        self.fault = fault


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key goes to the address that it was given for, and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class RemoteAnswer:
    """An answer that has begun.

    Attributes
    ----------
    tokens_in, tokens_out : int
        As the other server counts them; 0 before it says so.
    """

    def __init__(self, response: Any, *, asked_usage: bool) -> None:
        self._response = response
        self._asked_usage = asked_usage
        self._read = 0
        self.tokens_in = self.tokens_out = 0

    def whole(self) -> dict[str, Any]:
        """The body of an answer in one piece; raises RemoteError."""
        try:
            data = self._response.read(MOST_BYTES + 1)
            found = json.loads(data) if len(data) <= MOST_BYTES else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RemoteError(f"its answer cannot be read: {error}") from None
        finally:
            self.close()
        if not isinstance(found, dict) or not isinstance(found.get("choices"), list):
            raise RemoteError("its answer is no chat completion")
        self._count(found)
        return found

    def next_line(self) -> bytes | None:
        """The next line of a stream, with its end; None behind the last one.

        The chunk with the usage is left out unless the client has asked for it.
        """
        while True:
            line: bytes = self._response.readline(MOST_BYTES)
            self._read += len(line)
            if not line or self._read > MOST_BYTES:
                return None
            if line.startswith(b"data: {"):
                with suppress(ValueError):
                    chunk = json.loads(line[6:])
                    self._count(chunk)
                    if chunk.get("choices") == [] and not self._asked_usage:
                        continue
            return line

    def close(self) -> None:
        """Hang up; harmless when repeated."""
        with suppress(OSError):
            self._response.close()

    def _count(self, body: Mapping[str, Any]) -> None:
        usage = body.get("usage")
        if isinstance(usage, dict):
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            self.tokens_in, self.tokens_out = (
                n if isinstance(n, int) and n >= 0 else 0 for n in counts
            )


def open_answer(model: RoutedModel, body: Mapping[str, Any], timeout_s: float) -> RemoteAnswer:
    """Ask a model; returns when its answer begins.

    Raises
    ------
    RemoteError
    """
    streamed = bool(body.get("stream"))
    options = body.get("stream_options")
    asked = isinstance(options, dict) and bool(options.get("include_usage"))
    sent = {**body, "model": model.model}
    if streamed:
        sent["stream_options"] = {**(options or {}), "include_usage": True}
    request = urllib.request.Request(
        f"{model.url}/chat/completions",
        json.dumps(sent).encode(),
        {"content-type": "application/json", "accept": "text/event-stream, application/json"},
    )
    if model.key_env is not None:
        key = os.environ.get(model.key_env)
        if not key:
            raise RemoteError(f"the environment variable {model.key_env} with its key is not set")
        request.add_unredirected_header("authorization", f"Bearer {key}")
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        return RemoteAnswer(opener.open(request, timeout=timeout_s), asked_usage=asked)
    except urllib.error.HTTPError as error:
        with error:
            told = printable(error.read(ERROR_BYTES).decode("utf-8", "replace"))
        raise RemoteError(
            f"it answers {error.code}: {told}", fault=error.code in CLIENTS_FAULT
        ) from None
    except urllib.error.URLError as error:
        raise RemoteError(f"it cannot be reached: {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RemoteError(f"it cannot be reached: {error or type(error).__name__}") from None
