"""What a router has saved, and what quality it has kept: never one without the other.

Each request is a line of JSON. Costs are those of the tokens that were really used; the reference
is what its model would have cost for the same tokens. Quality is what was expected of the models,
and, of requests whose answers somebody has judged, what it was.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq.embedding.routing.config import RouterConfig
from slmq.embedding.routing.decision import Decision
from slmq.errors import DataError, WriteError

__all__ = ["Ledger", "Report", "entry_of", "read_log", "report_of"]


@dataclass(frozen=True)
class Report:
    """A log in numbers.

    Attributes
    ----------
    requests, failed, fallbacks, shadowed : int
        Failed: no model answered. Fallbacks: another model than the chosen one did.
    reference : str
    cost, reference_cost : float
        What the models that the router chose cost, and what the reference would have.
    saving : float
        The share of the reference's cost that is saved.
    quality_kept : float
        Expected right answers, as a share of those that are expected of the reference.
    judged : int
        Requests for which it is known whether the chosen model and the reference were right.
    judged_right, judged_reference_right : float or None
        The shares of those; None if there are none.
    models : dict of str to int
        How often each was chosen.
    """

    requests: int
    failed: int
    fallbacks: int
    shadowed: int
    reference: str
    cost: float
    reference_cost: float
    saving: float
    quality_kept: float
    judged: int
    judged_right: float | None
    judged_reference_right: float | None
    models: dict[str, int]

    def __str__(self) -> str:
        measured = "no answer was judged, so quality is an estimate of the heads"
        if self.judged_right is not None and self.judged_reference_right is not None:
            measured = (
                f"of {self.judged} judged requests {self.judged_right:.1%} were right, with "
                f"{self.reference} alone {self.judged_reference_right:.1%}"
            )
        return (
            f"{self.requests} requests: {self.saving:.1%} of the cost of {self.reference} saved, "
            f"{self.quality_kept:.1%} of its quality kept; {measured}"
        )


class Ledger:
    """A log that grows; made anew if it was moved away. Safe to use from several threads."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append a line; raises WriteError."""
        if self._path is None:
            return
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        try:
            with self._lock, self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise WriteError(
                f"{self._path}: cannot be written: {error.strerror or error}"
            ) from None


def entry_of(
    config: RouterConfig,
    decision: Decision,
    *,
    id: str,
    answered: str | None,
    tokens_in: int,
    tokens_out: int,
    reference_right: float,
    text: str | None,
    failures: Mapping[str, str],
) -> dict[str, Any]:
    """The line of a request.

    `answered` is the model that answered, None if none did; `failures` says of others why not.
    """
    chosen = decision.model if answered is None or decision.shadow else answered
    found: dict[str, Any] = {
        "time": round(time.time(), 3),
        "id": id,
        "chosen": decision.model,
        "answered": answered,
        "shadow": decision.shadow,
        "rule": decision.rule,
        "task": decision.labels.task,
        "domain": decision.labels.domain,
        "language": decision.labels.language,
        "complexity": decision.labels.complexity,
        "p_right": {name: round(p, 4) for name, p in decision.p_right.items()},
        "reference": decision.reference,
        "reference_right": round(reference_right, 4),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "cost": config.model(chosen).cost(tokens_in, tokens_out),
        "reference_cost": config.model(decision.reference).cost(tokens_in, tokens_out),
    }
    if failures:
        found["failures"] = dict(failures)
    if text is not None:
        found["text"] = text
    return found


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that was cut short by a crash is left out.

    Raises
    ------
    DataError
        If it cannot be read, or another line is no JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number}: expected JSON: {error}") from None
        if not isinstance(entry, dict):
            raise DataError(f"{path}: line {number}: expected an object, got {entry!r:.80}")
        found.append(entry)
    return found


def report_of(entries: Iterable[Mapping[str, Any]], path: Path) -> Report:
    """Add a log up.

    Raises
    ------
    DataError
        If it has no requests, or a line lacks something.
    """
    listed = [entry for entry in entries if "chosen" in entry]
    if not listed:
        raise DataError(f"{path}: expected lines of a router's log, found none")
    cost = reference_cost = right = reference_right = 0.0
    judged: list[tuple[bool, bool]] = []
    models: dict[str, int] = {}
    for number, entry in enumerate(listed, 1):
        try:
            name = entry["chosen"] if entry["shadow"] else entry["answered"] or entry["chosen"]
            models[name] = models.get(name, 0) + 1
            cost += float(entry["cost"])
            reference_cost += float(entry["reference_cost"])
            right += float(entry["p_right"].get(name, entry["reference_right"]))
            reference_right += float(entry["reference_right"])
            known = entry.get("right", {})
            if name in known and entry["reference"] in known:
                judged.append((bool(known[name]), bool(known[entry["reference"]])))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: request {number}: {type(error).__name__}: {error}") from None
    count = len(judged)
    return Report(
        len(listed),
        sum(entry["answered"] is None for entry in listed),
        sum(
            entry["answered"] not in (None, entry["chosen"]) and not entry["shadow"]
            for entry in listed
        ),
        sum(bool(entry["shadow"]) for entry in listed),
        str(listed[-1]["reference"]),
        cost,
        reference_cost,
        1 - cost / reference_cost if reference_cost else 0.0,
        right / reference_right if reference_right else 0.0,
        count,
        sum(one for one, _ in judged) / count if count else None,
        sum(other for _, other in judged) / count if count else None,
        dict(sorted(models.items(), key=lambda item: -item[1])),
    )
