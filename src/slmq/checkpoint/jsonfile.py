"""JSON from files that we did not write: size limits, and errors that name the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slmq.checkpoint.strangers import known_stranger
from slmq.errors import CheckpointError
from slmq.machine.disk import read_regular

__all__ = ["parse_json_object", "read_json_object"]


def read_json_object(
    path: Path, max_bytes: int, *, allow_duplicates: bool = False
) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Parameters
    ----------
    path : Path
        A regular file, UTF-8 with or without a byte order mark.
    max_bytes : int
        The largest size that is read.
    allow_duplicates : bool
        Whether a name may occur twice in an object (the last one counts, as everywhere in Python).

    Raises
    ------
    CheckpointError
        The file is missing, too large, not UTF-8, not JSON (with line and column), not an object.
    """
    try:
        data = read_regular(path, max_bytes).removeprefix(b"\xef\xbb\xbf")
    except (OSError, ValueError) as e:  # ValueError: a NUL character in the path
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise CheckpointError(f"cannot open the file: {reason}", file=path) from e
    if not data:
        raise CheckpointError("the file is empty; download it again", file=path)
    return parse_json_object(data, path, "the file", allow_duplicates=allow_duplicates)


def parse_json_object(
    data: bytes, path: Path, what: str, *, allow_duplicates: bool = False
) -> dict[str, Any]:
    """Parse bytes of `path` as one JSON object; `what` names them in errors."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise CheckpointError(f"the name {name!r:.80} occurs twice in {what}", file=path)
            found[name] = value
        return found

    hook = None if allow_duplicates else unique
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=hook)
        # JSON can spell half a surrogate pair, which no later print or write survives.
        json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as e:
        if stranger := known_stranger(data[:64]):
            raise CheckpointError(f"expected JSON, found {stranger}", file=path) from e
        at = f"line {e.lineno} column {e.colno}"
        raise CheckpointError(f"{what} is not JSON: {e.msg} at {at}", file=path) from e
    except UnicodeDecodeError as e:
        raise CheckpointError(
            f"{what} is not UTF-8: {e.reason} at byte {e.start}", file=path
        ) from e
    except UnicodeEncodeError as e:
        raise CheckpointError(f"{what} contains half of a surrogate pair", file=path) from e
    except (RecursionError, ValueError) as e:  # ValueError: an integer of thousands of digits
        raise CheckpointError(f"{what} is not usable JSON: {e}", file=path) from e
    if not isinstance(parsed, dict):
        got = type(parsed).__name__
        raise CheckpointError(f"expected {what} to be a JSON object, got a {got}", file=path)
    return parsed
