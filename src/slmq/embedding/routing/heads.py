"""What is made of a prompt: task, domain, language, and how likely models are to be right.

All heads are logistic regressions over one vector, that of the encoder beside `plain_features`, and
run in one product. Two of them tell how likely a weak and a strong model are right, as measured on
thousands of questions (Mixtral 8x7B and GPT-4, RouteLLM). Another model lies between them, below or
above, where its own share of right answers on such questions says.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.embedding.routing.features import LOOKED_AT, plain_features
from slmq.embedding.routing.language import BUCKETS, LanguageHead
from slmq.embedding.scores import softmax
from slmq.errors import DataError, WriteError
from slmq.machine.disk import create, publish, read_regular
from slmq.machine.exact import exact_exp

if TYPE_CHECKING:
    from slmq.embedding.encoder import Encoder

__all__ = ["Labels", "RouterHeads", "load_heads", "sigmoid", "vector_of"]

F32 = npt.NDArray[np.float32]
VERSION = 1
MAX_BYTES = 64 << 20
RIGHT = "right:"
WEAK, STRONG = "usual:weak", "usual:strong"
PROBE = "How far away is the moon?"
LIKE = 0.95  # of its vector and the one in the file: formats of weights differ by less
HALVINGS = 40


@dataclass(frozen=True)
class Labels:
    """What the heads say of a prompt.

    Attributes
    ----------
    task, domain, language : str
        The likeliest ones.
    tasks, domains : dict of str to float
        Probabilities.
    language_lead : float
        By how much the language leads: 0 for not at all, up to 1.
    weak_right : float
        How likely a weak model is right.
    complexity : int
        1 to 10: the chance that a weak model is wrong, in tenths.
    logits : dict of str to float
        Of every head of a model.
    """

    task: str
    domain: str
    language: str
    tasks: dict[str, float]
    domains: dict[str, float]
    language_lead: float
    weak_right: float
    complexity: int
    logits: dict[str, float]


class RouterHeads:
    """The heads of a file.

    Parameters
    ----------
    facts : mapping
        Of the file: the name of the encoder, labels, and where all comes from.
    arrays : mapping of str to array
    """

    def __init__(self, facts: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.facts = dict(facts)
        self.arrays = dict(arrays)
        self.names = [str(name) for name in facts["heads"]]
        self.encoder: str = facts["encoder"]
        weights = np.concatenate([arrays[f"{name}/weights"] for name in self.names])
        self._bias: F32 = np.concatenate([arrays[f"{name}/bias"] for name in self.names])
        self._columns = int(weights.shape[1])
        packed = np.ascontiguousarray(weights, np.float32)
        n, k = packed.shape
        self._matrix = _native.Matrix.pack("f32", packed.reshape(-1).view(np.uint8), n, k, "f32")
        self._language = LanguageHead(list(facts["languages"]), arrays["languages/weights"])
        # Logits of the weak and the strong model, of questions. Two heads that are each a little
        # wrong may cross; a strong model is taken to be right where a weak one is.
        self._usual: F32 = np.stack([arrays["usual"][:, 0], arrays["usual"].max(axis=1)], axis=1)
        self._shifts: dict[float, tuple[float, float]] = {}

    @cached_property
    def models(self) -> list[str]:
        """Models that have a head of their own."""
        return [name[len(RIGHT) :] for name in self.names if name.startswith(RIGHT)]

    def check(self, encoder: Encoder) -> None:
        """Refuse an encoder that they were not trained on; raises DataError."""
        want: F32 = self.arrays["probe"]
        found = encoder.embed(PROBE, normalize=True, truncate=True)
        if found.shape != want.shape or float(found @ want) < LIKE:
            raise DataError(
                f"the heads were trained on {self.encoder!r}, and {encoder.name!r} gives other "
                f"vectors; set encoder, or train heads with `slmq route train`"
            )

    def labels(self, text: str, vector: F32) -> Labels:
        """What the heads say of a prompt and its vector, which has length 1."""
        x = np.concatenate([vector, plain_features(text).astype(np.float32)])
        logits = self._matrix.matmul(x[None])[0] + self._bias
        found: dict[str, F32] = {}
        at = 0
        for name in self.names:
            count = len(self.arrays[f"{name}/bias"])
            found[name] = logits[at : at + count]
            at += count
        tasks, domains = (self._likely(name, found[name]) for name in ("task", "domain"))
        language, lead = self._language.language_of(text)
        weak = sigmoid(float(found[WEAK][0]))
        return Labels(
            max(tasks, key=tasks.__getitem__),
            max(domains, key=domains.__getitem__),
            language,
            tasks,
            domains,
            lead,
            weak,
            min(10, 1 + int(10 * (1 - weak))),
            {name: float(found[name][0]) for name in self.names if len(found[name]) == 1},
        )

    def right(self, labels: Labels, model: str, quality: float | None) -> float:
        """How likely a model is right.

        Parameters
        ----------
        labels : Labels
            Of the prompt.
        model : str
            Its own head counts, if there is one.
        quality : float, optional
            Its share of right answers; needed without a head.
        """
        own = labels.logits.get(RIGHT + model)
        if own is not None:
            return sigmoid(own)
        if quality is None:
            raise DataError(
                f"model {model!r}: quality is missing: the share of questions that it answers "
                f"right, 0..1, or train heads for it with `slmq route train`"
            )
        share, shift = self._shift(quality)
        weak = labels.logits[WEAK]
        strong = max(weak, labels.logits[STRONG])
        return sigmoid(weak + share * (strong - weak) + shift)

    def _shift(self, quality: float) -> tuple[float, float]:
        """How far between weak and strong a model lies, and how far below or above both.

        One of both is at an end, so a better model is at least as likely right, whatever is asked.
        """
        if quality not in self._shifts:
            weak, strong = (self._mean(share, 0.0) for share in (0.0, 1.0))
            if weak <= quality <= strong:
                found = _halved(0.0, 1.0, lambda share: self._mean(share, 0.0) < quality), 0.0
            else:
                end = float(quality > strong)
                found = end, _halved(-12.0, 12.0, lambda by: self._mean(end, by) < quality)
            self._shifts[quality] = found
        return self._shifts[quality]

    def _mean(self, share: float, shift: float) -> float:
        """How many of the usual questions such a model is expected to answer right."""
        weak, strong = self._usual.T.astype(np.float64)
        mixed = weak + share * (strong - weak) + shift
        return float(np.mean([sigmoid(float(x)) for x in mixed]))

    def _likely(self, name: str, logits: F32) -> dict[str, float]:
        likely = softmax(logits)
        return {label: float(p) for label, p in zip(self.facts[name], likely, strict=True)}

    def save(self, path: Path) -> None:
        """Write them into a file; raises WriteError."""
        told = np.frombuffer(json.dumps(self.facts, ensure_ascii=False).encode(), np.uint8)
        held = io.BytesIO()
        np.savez_compressed(held, facts=told, **self.arrays)
        temporary = path.with_name(path.name + ".tmp")
        try:
            with create(temporary, path.parent) as file:
                file.write(held.getvalue())
                publish(file, temporary, path, path.parent)
        except OSError as error:
            raise WriteError(f"{path}: cannot be written: {error.strerror or error}") from None


def load_heads(path: Path | None = None) -> RouterHeads:
    """Read the heads of a file, or those of the package.

    Raises
    ------
    DataError
        If the file is damaged, or none of heads.
    """
    if path is None:
        data = files("slmq.embedding.routing").joinpath("heads.npz").read_bytes()
    else:
        try:
            data = read_regular(path, MAX_BYTES)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        facts = json.loads(arrays.pop("facts").tobytes())
        if facts["version"] != VERSION:
            raise DataError(f"{path}: expected version {VERSION}, found {facts['version']!r:.40}")
        if arrays["languages/weights"].shape != (BUCKETS, len(facts["languages"])):
            raise ValueError("the languages have another shape")
        return RouterHeads(facts, arrays)
    # A damaged archive can fail in any of these ways.
    except (ValueError, KeyError, TypeError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{path}: no heads, or damaged: {error}") from None


def _halved(low: float, high: float, more: Callable[[float], bool]) -> float:
    """Where a function that grows reaches what is wanted; `more` says that it is not there yet."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if more(middle) else (low, middle)
    return (low + high) / 2


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), with the same bits everywhere."""
    return 1 / (1 + exact_exp(-x)) if x >= 0 else exact_exp(x) / (1 + exact_exp(x))


def vector_of(encoder: Encoder, text: str) -> F32:
    """The vector of a prompt, of its beginning if it is long."""
    return encoder.embed(text[:LOOKED_AT] or " ", normalize=True, truncate=True)
