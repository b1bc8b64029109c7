"""What a docstring says of a function and of its parameters, in any of the three usual manners."""

from __future__ import annotations

import inspect
import re

__all__ = ["Described", "read_docstring"]

Described = tuple[str, dict[str, str]]

# numpydoc: a heading over a line of dashes.
HEADING = re.compile(r"^([A-Z][\w ]*)\n-{3,}$", re.MULTILINE)
# numpydoc: "name, other : type" or "*names"; the text is indented under it.
NUMPY_ENTRY = re.compile(r"^(?!\s)([\w*, ]+?)\s*(?::.*)?$")
# Google: a heading with a colon; "name (type): text" is indented under it.
GOOGLE_HEADING = re.compile(
    r"^(Args|Arguments|Parameters|Params|Returns?|Yields?|Raises|Examples?|Notes?|Attributes"
    r"|See Also|Warnings?|References|Todo):[ \t]*$",
    re.MULTILINE,
)
GOOGLE_ENTRY = re.compile(r"^(\*{0,2}\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
# reST: ":param type name: text".
REST_FIELD = re.compile(r"^:(\w+)(?:\s+([^:\n]*))?:[ \t]*", re.MULTILINE)
REST_PARAMETERS = {"param", "parameter", "arg", "argument", "key", "keyword"}


def read_docstring(text: str | None) -> Described:
    """The description of a function, and of each parameter that has one.

    Parameters
    ----------
    text : str or None
        A docstring after numpydoc, Google or reST; of any other it is all description.
    """
    text = inspect.cleandoc(text or "")
    if HEADING.search(text):
        return _numpydoc(text)
    if GOOGLE_HEADING.search(text):
        return _google(text)
    if REST_FIELD.search(text):
        return _rest(text)
    return _joined(text), {}


def _joined(text: str) -> str:
    """One line for each paragraph."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _sections(text: str, heading: re.Pattern[str]) -> tuple[str, dict[str, str]]:
    parts = heading.split(text)
    return parts[0], dict(zip(parts[1::2], parts[2::2], strict=True))


def _numpydoc(text: str) -> Described:
    head, sections = _sections(text, HEADING)
    found: dict[str, str] = {}
    for title in ("Parameters", "Other Parameters"):
        names: list[str] = []
        texts: list[str] = []
        for line in [*sections.get(title, "").strip("\n").split("\n"), "end"]:
            entry = NUMPY_ENTRY.match(line)
            if entry is None:
                texts.append(line.strip())
                continue
            found |= {name: _joined("\n".join(texts)) for name in names}
            names = [name.strip().lstrip("*") for name in entry[1].split(",")]
            texts = []
    return _joined(head), {name: said for name, said in found.items() if said}


def _google(text: str) -> Described:
    head, sections = _sections(text, GOOGLE_HEADING)
    found: dict[str, list[str]] = {}
    for title in ("Args", "Arguments", "Parameters", "Params"):
        name = None
        for line in inspect.cleandoc("\n" + sections.get(title, "")).split("\n"):
            entry = GOOGLE_ENTRY.match(line)
            if entry is not None:
                name = entry[1].lstrip("*")
                found[name] = [entry[2]]
            elif name is not None and line.startswith((" ", "\t")):
                found[name].append(line.strip())
            elif line.strip():
                name = None
    return _joined(head), {name: said for name, lines in found.items() if (said := _said(lines))}


def _rest(text: str) -> Described:
    parts = REST_FIELD.split(text)
    found = {}
    for field, about, said in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if field in REST_PARAMETERS and about:
            found[about.split()[-1].lstrip("*")] = _joined(said)
    return _joined(parts[0]), {name: said for name, said in found.items() if said}


def _said(lines: list[str]) -> str:
    return _joined("\n".join(lines))
