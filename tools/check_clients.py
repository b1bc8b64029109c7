"""Libraries that stand on OpenAI's client, unchanged, against `slmq serve`.

    pip install litellm langchain-openai instructor
    slmq serve smollm2-135m-instruct &
    python tools/check_clients.py http://127.0.0.1:8080/v1 smollm2-135m-instruct

Each prints a line; the exit code is 1 if one fails. They are too heavy for the test extra.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

QUESTION = "Name a colour."
MOST = 16


def with_litellm(url: str, model: str) -> str:
    """A completion, and the same as a stream."""
    import litellm

    asked = {"model": f"openai/{model}", "api_base": url, "api_key": "none", "temperature": 0}
    asked |= {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": MOST}
    whole = litellm.completion(**asked).choices[0].message.content
    parts = (
        part.choices[0].delta.content or "" for part in litellm.completion(**asked, stream=True)
    )
    assert "".join(parts) == whole
    return str(whole)


def with_langchain(url: str, model: str) -> str:
    """An answer, and the same as a stream."""
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=model, base_url=url, api_key="none", temperature=0, max_tokens=MOST)
    whole = chat.invoke(QUESTION).content
    assert "".join(part.content for part in chat.stream(QUESTION)) == whole
    return str(whole)


def with_instructor(url: str, model: str) -> str:
    """A value of a type, by JSON schema and by a tool."""
    import instructor
    from openai import OpenAI
    from pydantic import BaseModel

    class Colour(BaseModel):
        warm: bool

    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
        client = instructor.from_openai(OpenAI(base_url=url, api_key="none"), mode=mode)
        found = client.chat.completions.create(
            model=model,
            response_model=Colour,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=100,
            temperature=0,
        )
        assert isinstance(found, Colour)
    return repr(found)


def main() -> int:
    """Try each."""
    url, model = sys.argv[1:]
    failed = 0
    checks: tuple[Callable[[str, str], str], ...] = (with_litellm, with_langchain, with_instructor)
    for check in checks:
        try:
            print(f"{check.__name__}: {check(url, model)!r}")
        except Exception as error:
            failed += 1
            print(f"{check.__name__}: FAILED: {type(error).__name__}: {error}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
