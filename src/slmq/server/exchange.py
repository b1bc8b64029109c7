"""A request of any API: put into the words of a chat of OpenAI's, answered, and put back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from slmq.batch.requests import RequestError
from slmq.server.replies import Reply, Stream, until_gone

if TYPE_CHECKING:
    from starlette.requests import Request

    from slmq.generation.results import GenerationResult
    from slmq.server.service import Service
    from slmq.server.talk import Heard, Talk

__all__ = ["exchange", "flag", "hear_all", "ignored_header", "only", "text_of"]

EVENTS = "text/event-stream; charset=utf-8"


async def exchange(
    service: Service,
    request: Request,
    url: str,
    body: Mapping[str, Any],
    *,
    stream: bool,
    whole: Callable[[Talk, list[GenerationResult]], Any],
    events: Callable[[Talk], AsyncIterator[bytes]],
    ignored: Iterable[str] = (),
    kind: str = EVENTS,
) -> Reply | Stream:
    """Answer a request.

    Parameters
    ----------
    service : Service
    request : Request
    url : str
        Of OpenAI's endpoint in whose words `body` is.
    body : mapping
    stream : bool
    whole : callable
        Makes the answer in one piece.
    events : callable
        Makes the answer in many.
    ignored : iterable of str
        Fields of the request without effect.
    kind : str
        Content type of a stream.
    """
    headers = ignored_header(ignored)
    begun = service.begin(url, body, request.scope, whole=not stream)
    talk = await until_gone(request.receive, begun)
    if stream:
        return Stream(events(talk), talk.close, kind, {**headers, **talk.headers})
    try:
        results = await until_gone(request.receive, talk.finish())
    finally:
        talk.close()
    return Reply(whole(talk, results), headers={**headers, **talk.headers})


async def hear_all(talk: Talk) -> AsyncIterator[Heard | None]:
    """All pieces of an answer; None after a while without."""
    while not talk.complete:
        news = await talk.hear()
        for heard in news:
            yield heard
        if not news:
            yield None


def ignored_header(names: Iterable[str]) -> dict[str, str]:
    """Tells which fields had no effect."""
    text = ", ".join(sorted(names))
    return {"x-slmq-ignored": text} if text else {}


def only(body: Mapping[str, Any], known: Iterable[str], where: str = "") -> dict[str, Any]:
    """The fields of an object that are set.

    Raises
    ------
    RequestError
        If there is one that is not known.
    """
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in known:
            raise RequestError(f"{where}{name:.80}: is not supported", f"{where}{name:.80}")
    return given


def flag(body: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """A field that is true or false."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise RequestError(f"{name}: expected true or false, got {value!r:.80}", name)
    return value


def text_of(value: Any, where: str, kinds: Iterable[str]) -> str:
    """A string, or the text of a list of parts of these types."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RequestError(f"{where}: expected a string or a list of parts", where)
    texts = []
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind is None or kind not in kinds or not isinstance(part.get("text"), str):
            raise RequestError(
                f"{where}[{i}]: expected text, got a part of type {kind!r:.40}; the model reads "
                f"text only",
                where,
            )
        texts.append(part["text"])
    return "".join(texts)
