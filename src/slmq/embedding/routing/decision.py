"""What a router says of a request."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from slmq.embedding.routing.heads import Labels

__all__ = ["Decision"]


@dataclass(frozen=True)
class Decision:
    """Which model is to answer, and why.

    Attributes
    ----------
    model : str
    order : list of str
        The model, and those to be asked after it if it fails.
    reason : str
    labels : Labels
    p_right : dict of str to float
        How likely each model that may answer is right.
    costs : dict of str to float
        What its answer is expected to cost.
    tokens : int
        Of the prompt, as the encoder counts them.
    answer_tokens : int
        The length of the answer that costs are computed for.
    rule : str or None
        The rule that applied.
    reference : str
        The model that it is compared with.
    shadow : bool
        Whether the reference answers all the same.
    took_ms : float
    """

    model: str
    order: list[str]
    reason: str
    labels: Labels
    p_right: dict[str, float]
    costs: dict[str, float]
    tokens: int
    answer_tokens: int
    rule: str | None
    reference: str
    shadow: bool
    took_ms: float

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        found = asdict(self)
        del found["labels"]["logits"]
        return found
