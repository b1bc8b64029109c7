"""Measured damages, kept in the cache folder: another number of bits need not measure them anew."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from slmq.formats import FORMATS
from slmq.machine.disk import publish

__all__ = ["KeptDamage"]

log = logging.getLogger("slmq")

FOLDER = "damage"
WAY = 3  # of measuring: another one gives other numbers

Damage = dict[str, dict[str, float]]


class KeptDamage:
    """The damages of one source, text and set of formats.

    A folder that cannot be written keeps nothing; a file that says something else is measured anew.

    Parameters
    ----------
    cache : Path
    made_of : mapping
        What they follow from: the source's files, the text, the formats.
    names : collection of str
        The matrices.
    """

    def __init__(self, cache: Path, made_of: Mapping[str, Any], names: list[str]) -> None:
        key = json.dumps({"way": WAY, **made_of}, sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()
        self._path = cache / FOLDER / f"{digest}.json"
        self._names = set(names)

    def read(self) -> Damage | None:
        """The damage of every format to every matrix; None if it is not known."""
        try:
            found = json.loads(self._path.read_text("utf-8"))
            whole = set(found) == self._names and all(
                fmt in FORMATS and isinstance(value, float)
                for damage in found.values()
                for fmt, value in damage.items()
            )
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return None
        return found if whole else None

    def write(self, damage: Damage) -> None:
        """Keep them, if the folder can be written."""
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write((json.dumps(damage) + "\n").encode())
                publish(file, temporary, self._path, self._path.parent)
        except OSError as error:
            log.info("%s: damages are not kept: %s", self._path, error.strerror or error)
            with suppress(OSError):
                temporary.unlink()
