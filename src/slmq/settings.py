"""What people choose: words for formats and caches, and options that carry their own help.

An option is a field of a frozen dataclass, made by `option`: default, help and check stand there
once. Signatures of Python functions (`takes`), flags of the command line and the errors for wrong
values are all made from it, so a new option is one field.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = [
    "Activations",
    "Check",
    "EncoderActivations",
    "KvDtype",
    "Memory",
    "Option",
    "PackedFormat",
    "WeightFormat",
    "byte_count",
    "check_options",
    "described",
    "from_keywords",
    "integer",
    "names_of",
    "number",
    "one_of",
    "option",
    "option_of",
    "shown",
    "takes",
    "truth",
    "written_hints",
]

# What weights may be rounded to while a model loads.
WeightFormat = Literal["int4", "int8", "f16", "f32", "q4g32s", "q4g32a", "q8g32s", "q8rs"]
# What `slmq.quantize` rounds to.
PackedFormat = Literal[
    "int4",
    "int8",
    "q2k",
    "q4g128s",
    "q4g64s",
    "q4g128z",
    "n4g32",
    "n4k",
    "q4g32s",
    "n4g32s",
    "q4g64z",
    "q4k",
    "q4g32a",
    "q5g32s",
    "q5k",
    "q5g32a",
    "q6g32s",
    "q6k",
    "q8g32s",
]
KvDtype = Literal["f16", "f32", "int8", "int4"]
Memory = Literal["mmap", "huge", "small"]
Activations = Literal["mixed", "exact"]
EncoderActivations = Literal["fast", "mixed", "exact"]

LARGEST_FLOAT32 = 3.4028234663852886e38
BYTE_COUNT = re.compile(r"(\d+(?:\.\d+)?) *(?:([kmgt]?)(i?)b)?", re.IGNORECASE)
OPTION = "slmq"  # key in the metadata of a dataclass field

Check = Callable[[str, object], Any]
F = TypeVar("F", bound=Callable[..., Any])
K = TypeVar("K")


@dataclass(frozen=True)
class Option:
    """What a field of an options dataclass knows about itself.

    Attributes
    ----------
    help : str
        A sentence or two, as the command line shows them.
    check : callable
        Takes the name and the value that was given and returns the value to keep; raises TypeError
        or ValueError.
    flag : str, optional
        On the command line; by default the name with dashes.
    metavar : str, optional
        What stands for the value in the help of the command line.
    parse : callable, optional
        For a flag that may be repeated: makes the value of the texts that were given.
    formerly : str, optional
        An older name, which is taken with a DeprecationWarning.
    group : str, optional
        Who reads it, where the options of one dataclass go to several.
    """

    help: str
    check: Check
    flag: str | None = None
    metavar: str | None = None
    parse: Callable[[list[str]], Any] | None = None
    formerly: str | None = None
    group: str | None = None


def option(default: Any, help: str, check: Check, **more: Any) -> Any:
    """A field of an options dataclass; keywords are attributes of `Option`."""
    return field(default=default, metadata={OPTION: Option(help, check, **more)})


def option_of(entry: Any) -> Option:
    """What a field of an options dataclass knows about itself."""
    found = entry.metadata[OPTION]
    assert isinstance(found, Option)
    return found


def names_of(kind: Any, group: str) -> tuple[str, ...]:
    """The options of a dataclass that belong to a group."""
    return tuple(entry.name for entry in fields(kind) if option_of(entry).group == group)


def check_options(options: Any) -> None:
    """Check every field and keep what its check returns; for `__post_init__`."""
    for entry in fields(options):
        value = option_of(entry).check(entry.name, getattr(options, entry.name))
        object.__setattr__(options, entry.name, value)  # frozen for everybody else


def from_keywords(kind: Callable[..., K], keywords: Mapping[str, Any], *, stacklevel: int = 3) -> K:
    """Make an options dataclass of keyword arguments.

    Parameters
    ----------
    kind : type
        The dataclass.
    keywords : mapping
        By name. A former name is renamed, with a DeprecationWarning.
    stacklevel : int
        Whose line the warning names: 2 is the caller of this function.

    Raises
    ------
    TypeError
        For an unknown name, which is shown beside its nearest neighbour; or a wrong type.
    ValueError
        If a value is out of range.
    """
    known = {entry.name: option_of(entry) for entry in fields(kind)}  # type: ignore[arg-type]
    former = {item.formerly: name for name, item in known.items() if item.formerly is not None}
    given = dict(keywords)
    for old, new in former.items():
        if old in given:
            if new in given:
                raise TypeError(f"{old}= is the former name of {new}=; give one of them")
            message = f"{old}= is now {new}= and will be removed in the next release"
            warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)
            given[new] = given.pop(old)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"unknown parameter {name!r}{hint} (expected one of {', '.join(known)})"
            )
    return kind(**given)


def written_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's parameters and result, with what `Annotated` adds.

    Python 3.10 makes a hint Optional where the default is None, around `Annotated`, too; later
    versions leave it as it was written, and so does this everywhere.

    Raises
    ------
    Exception
        Whatever evaluating them raises.
    """
    hints = get_type_hints(function, include_extras=True)
    return {name: _as_written(hint) for name, hint in hints.items()}


def _as_written(hint: Any) -> Any:
    parts = get_args(hint)
    wrapped = get_origin(hint) is Union and len(parts) == 2 and parts[1] is type(None)
    return parts[0] if wrapped and get_origin(parts[0]) is Annotated else hint


def takes(kind: type) -> Callable[[F], F]:
    """Give a function with ``**keywords`` the signature and documentation of an options dataclass.

    Completion in notebooks and `help` then name every option. In the docstring, the entry of the
    keywords (a line such as ``**params`` and what is indented under it) is replaced by the
    parameters of the dataclass.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = list(signature.parameters.values())
        assert own[-1].kind is inspect.Parameter.VAR_KEYWORD
        named = [
            inspect.Parameter(
                entry.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=entry.default,
                annotation=entry.type,
            )
            for entry in fields(kind)
        ]
        shown = signature.replace(parameters=[*own[:-1], *named])
        function.__signature__ = shown  # type: ignore[attr-defined]
        if function.__doc__ is not None:
            function.__doc__ = _documented(function.__doc__, f"**{own[-1].name}", kind)
        return function

    return decorate


def described(kind: type) -> str:
    """The parameters of a dataclass, as its docstring lists them, without indentation."""
    text = inspect.cleandoc(kind.__doc__ or "")
    return text.partition("Parameters\n----------\n")[2].partition("\n\n")[0]


def _documented(text: str, entry: str, kind: type) -> str:
    lines = text.split("\n")
    found = [i for i, line in enumerate(lines) if line.strip() == entry]
    if not found:
        return text
    first = found[0]
    indent = lines[first][: -len(lines[first].lstrip())]
    end = first + 1
    while lines[end].startswith(indent + " "):
        end += 1
    wanted = [indent + line if line else "" for line in described(kind).split("\n")]
    return "\n".join([*lines[:first], *wanted, *lines[end:]])


# --- checks -----------------------------------------------------------------------------------


def shown(value: object) -> str:
    """A value for an error: its type and what it is."""
    return f"{type(value).__name__} {value!r}"


def number(
    expected: str,
    *,
    low: float = -LARGEST_FLOAT32,
    high: float = LARGEST_FLOAT32,
    above: float = -math.inf,
) -> Check:
    """Check for a float with low <= value <= high and value > above, which no NaN passes."""

    def check(name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}: expected {expected}, got {shown(value)}")
        found = float(value)
        if not (low <= found <= high and found > above):
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
        return found

    return check


def integer(expected: str, *, low: int, high: float = math.inf, optional: bool = False) -> Check:
    """Check for an int with low <= value <= high, or None where that is allowed."""

    def check(name: str, value: object) -> int | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name}: expected {expected}, got {shown(value)}")
        found = int(value)
        if not low <= found <= high:
            raise ValueError(f"{name}: expected {expected}, got {found}")
        return found

    return check


def byte_count(expected: str, *, optional: bool = False) -> Check:
    """Check for a number of bytes: an int, or a text such as "512MB", "1.5 GB" or "2GiB"."""

    def check(name: str, value: object) -> int | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, (str, Integral)):
            raise TypeError(f"{name}: expected {expected}, got {shown(value)}")
        count = _bytes_of(value) if isinstance(value, str) else int(value)
        if count is None or count < 1:
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
        return count

    return check


def _bytes_of(text: str) -> int | None:
    found = BYTE_COUNT.fullmatch(text.strip())
    if found is None:
        return None
    power = "kmgt".find((found[2] or " ").lower()) + 1
    return int(Fraction(found[1]) * (1024 if found[3] else 1000) ** power)


def one_of(words: Any, *, optional: bool = False) -> Check:
    """Check for one of the words of a Literal type, or None where that is allowed."""

    def check(name: str, value: object) -> str | None:
        if value is None and optional:
            return None
        known = get_args(words)
        if value not in known:
            raise ValueError(
                f"{name}: expected one of {', '.join(map(repr, known))}; got {value!r}"
            )
        return str(value)

    return check


def truth(name: str, value: object) -> bool:
    """Check for a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {shown(value)}")
    return value
