"""What the library of grammars says is wrong, in our words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from slmq.errors import ConstraintError, printable
from slmq.generation.constraints.schema import place_of

__all__ = ["checked", "left_out", "library_faults"]

KEYWORDS = re.compile(r"Unimplemented keys: \[(.*?)\]")
FORMAT = re.compile(r"Unknown format: (\S+)")
ONE_OF = re.compile(r"oneOf .*")
REMOTE = re.compile(r"Resource '(.*?)' is not present")


def left_out(messages: list[str]) -> tuple[str, ...]:
    """The keywords that messages of the compiler name."""
    found: list[str] = []
    for message in messages:
        if match := KEYWORDS.search(message):
            found += re.findall(r'"(.*?)"', match[1])
        elif match := FORMAT.search(message):
            found.append(f"format: {match[1]}")
        elif ONE_OF.match(message):
            found.append("oneOf")
        else:
            found.append(_plain(message))
    return tuple(dict.fromkeys(found))


def checked(inner: Any, about: str, schema: Mapping[str, Any] | None = None) -> None:
    """Raise ConstraintError if something went wrong in a matcher of the library."""
    if not inner.is_error():
        return
    message = inner.get_error()
    known = any(kind.search(message) for kind in (KEYWORDS, FORMAT, ONE_OF))
    if schema is not None and known:
        names = left_out([message])
        places = [place_of(schema, name.partition(":")[0]) for name in names]
        listed = ", ".join(
            f"{printable(name)} (at {printable(place, 120)})"
            for name, place in zip(names, places, strict=True)
        )
        raise ConstraintError(f"schema: cannot enforce {listed}; lenient=True leaves it out")
    if remote := REMOTE.search(message):
        raise ConstraintError(
            f"{about}: $ref {printable(remote[1])!r} leads elsewhere; nothing is fetched, write it "
            "under $defs"
        )
    if "Unable to determine if regex is empty" in message:
        raise ConstraintError(
            f"{about}: patterns that have to hold together, as of allOf, are too complex"
        )
    if message.startswith("NoExtension"):
        raise ConstraintError(f"{about}: nothing fulfils it")
    raise ConstraintError(f"{about}: {_plain(message)}")


class library_faults:  # noqa: N801 (it is used as contextlib's are, and a generator takes longer)
    """Whatever the library raises, a panic of its own included, is an error of this constraint."""

    def __init__(self, about: str) -> None:
        self._about = about

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or isinstance(error, ConstraintError):
            return
        if issubclass(kind, Exception) or kind.__name__ == "PanicException":
            raise ConstraintError(f"{self._about}: {_plain(str(error))}") from error


def _plain(message: str) -> str:
    """A message of the library in one line, without what it says about itself."""
    return printable(" ".join(message.replace("<non-verbose/>", "").split()), 400)
