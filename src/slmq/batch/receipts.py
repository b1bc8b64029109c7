"""Receipts: what was asked of which model, and hashes of what it answered; anybody can check one.

An answer is a function of the request, the seed and what the model computes. So a receipt need not
be trusted: whoever has the model asks again, and gets the same bytes or a proof that something
differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from slmq.batch.requests import read_request
from slmq.engine.options import PRECISION, LoadOptions
from slmq.errors import DataError
from slmq.generation.fingerprint import fingerprint, with_adapter
from slmq.settings import names_of

if TYPE_CHECKING:
    from slmq.generation.model import Model
    from slmq.generation.results import GenerationResult

__all__ = ["LOADING", "Checked", "check_receipt", "make_receipt"]

KIND = 1  # of receipts, should they change
LOADING = ("n_ctx", *names_of(LoadOptions, PRECISION))  # options that answers depend on
FIELDS = ("url", "body", "defaults", "answers", "system_fingerprint", "model")


@dataclass(frozen=True)
class Checked:
    """What came of asking again.

    Attributes
    ----------
    same : bool
    text : str
        What is the same, or what differs, for people.
    """

    same: bool
    text: str


def make_receipt(
    *,
    model: str,
    named: str,
    loading: Mapping[str, Any],
    url: str,
    body: Mapping[str, Any],
    defaults: Mapping[str, Any],
    seed: int | None,
    results: Sequence[GenerationResult],
    adapter: str | None = None,
) -> dict[str, Any]:
    """A receipt, as JSON has it.

    Parameters
    ----------
    model, named : str
        Name and fingerprint.
    loading : mapping
        Options by which it was loaded.
    url : str
        Of the endpoint of OpenAI's in whose words `body` is.
    body : mapping
    defaults : mapping
        Sampling parameters that the request did not set.
    seed : int, optional
        The one that was drawn if the request named none.
    results : sequence of GenerationResult
    adapter : str, optional
        Hash of the adapter that they were made with.
    """
    return {
        "receipt": KIND,
        "slmq": version("slmq"),
        "model": model,
        "system_fingerprint": named,
        "loading": {name: loading[name] for name in LOADING if name in loading},
        "url": url,
        "body": dict(body),
        "defaults": {name: value for name, value in defaults.items() if name != "adapter"},
        "adapter": adapter,
        "seed": seed,
        "answers": [_answer(result) for result in results],
    }


def check_receipt(model: Model, receipt: Mapping[str, Any]) -> Checked:
    """Ask a model again what a receipt says it was asked.

    Raises
    ------
    DataError
        If it is no receipt.
    RequestError
        If the request in it is not one.
    ValueError
        If the model has not loaded the adapter that it names.
    """
    _require(receipt)
    named, defaults = fingerprint(model), receipt["defaults"]
    if (digest := receipt.get("adapter")) is not None:
        named = with_adapter(named, digest)
        defaults = {**defaults, "adapter": _called(model, digest)}
    if named != receipt["system_fingerprint"]:
        told = receipt["system_fingerprint"]
        return Checked(
            False,
            f"{model.name} is {named}, and the receipt is of {told}: other weights, tokenizer, "
            "template or arithmetic",
        )
    asked = read_request(receipt["url"], receipt["body"], receipt.get("seed"), defaults)
    template = asked.template
    found = [
        _answer(model.submit(prompt, params, chat_template_kwargs=template, whole=True).finish())
        for prompt, params in asked.answers()
    ]
    for i, (one, other) in enumerate(zip(receipt["answers"], found, strict=False)):
        if one != other:
            return Checked(False, f"answer {i} differs: expected {one}, got {other}")
    if len(receipt["answers"]) != len(found):
        return Checked(False, f"expected {len(receipt['answers'])} answers, got {len(found)}")
    tokens = sum(answer["tokens"] for answer in found)
    return Checked(True, f"the same bytes: {tokens} tokens in {len(found)} answers, by {named}")


def _called(model: Model, digest: str) -> str:
    """The model's name for an adapter."""
    for name, held in model.adapters.items():
        if held == digest:
            return name
    loaded = ", ".join(f"{name!r} {held:.12}" for name, held in model.adapters.items()) or "none"
    raise ValueError(
        f"the receipt is of an answer with the adapter {digest:.12}, which is not loaded "
        f"(loaded: {loaded}); slmq verify --adapter PATH loads it"
    )


def _answer(result: GenerationResult) -> dict[str, Any]:
    ids = b"".join(token.to_bytes(4, "little") for token in result.tokens)
    return {
        "tokens": len(result.tokens),
        "tokens_sha256": hashlib.sha256(ids).hexdigest(),
        "text_sha256": hashlib.sha256(result.text.encode("utf-8", "surrogatepass")).hexdigest(),
        "finish_reason": result.finish_reason,
    }


def _require(receipt: Mapping[str, Any]) -> None:
    missing = [name for name in FIELDS if name not in receipt]
    kinds = {"body": dict, "defaults": dict, "answers": list, "url": str}
    if receipt.get("receipt") != KIND or missing:
        raise DataError(
            f"expected a receipt of slmq (version {KIND}), got an object without "
            f"{', '.join(missing) or 'that version'}"
        )
    for name, kind in kinds.items():
        if not isinstance(receipt[name], kind):
            raise DataError(f"{name}: expected {kind.__name__} in a receipt")
