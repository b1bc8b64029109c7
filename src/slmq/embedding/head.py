"""`Head`: labels of texts by a logistic regression on the vectors of an encoder."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from slmq.checkpoint.jsonfile import parse_json_object
from slmq.embedding import scores
from slmq.embedding.identity import encoder_identity
from slmq.embedding.loading import load_encoder
from slmq.embedding.logistic import FOLDS, cross_validated, fit_logistic, folds_of
from slmq.embedding.results import Scored, check_top_k
from slmq.embedding.texts import several
from slmq.errors import CheckpointError, DataError, WriteError
from slmq.machine.disk import create, publish, read_regular

if TYPE_CHECKING:
    from slmq.embedding.encoder import Encoder

__all__ = ["Head", "Trained"]

F32 = npt.NDArray[np.float32]
KIND, VERSION = "slmq head", 1
MAX_BYTES = 64 << 20
LEAST = 2  # examples of a label


@dataclass(frozen=True)
class Trained:
    """How well a head labels texts that it was not trained on, by five-fold cross-validation.

    Attributes
    ----------
    rows : int
    accuracy, log_loss, calibration_error : float
        Calibration error: by how much stated probabilities and shares of right labels differ.
    counts : dict of str to int
        Examples of each label.
    """

    rows: int
    accuracy: float
    log_loss: float
    calibration_error: float
    counts: dict[str, int]


class Head:
    """A logistic regression that belongs to one encoder; made by `fit` or `open`.

    Its answers are the same bits on every CPU.

    Attributes
    ----------
    encoder : Encoder
    labels : list of str
    trained : Trained
    """

    def __init__(
        self, encoder: Encoder, labels: Sequence[str], weights: F32, bias: F32, trained: Trained
    ) -> None:
        self.encoder = encoder
        self.labels = list(labels)
        self.trained = trained
        self._weights = np.ascontiguousarray(weights, np.float32)
        self._bias = np.asarray(bias, np.float32)
        self._owned = False

    def __repr__(self) -> str:
        return f"<slmq.Head of {self.encoder.name!r}, {len(self.labels)} labels>"

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the encoder, if `open` has loaded it; harmless when repeated."""
        if self._owned:
            self.encoder.close()

    @property
    def digest(self) -> str:
        """A name for its labels and weights."""
        found = hashlib.sha256(repr(self.labels).encode())
        found.update(self._weights.tobytes() + self._bias.tobytes())
        return found.hexdigest()

    @classmethod
    def fit(
        cls,
        encoder: Encoder,
        texts: Iterable[str],
        labels: Sequence[str],
        *,
        truncate: bool = False,
    ) -> Head:
        """Train a head on texts with their labels; takes seconds.

        The penalty is chosen, and probabilities are calibrated, by cross-validation.

        Parameters
        ----------
        encoder : Encoder
        texts : iterable of str
        labels : sequence of str
        truncate : bool
            Whether texts that are too long are cut off.

        Raises
        ------
        DataError
            If there is one label only, or one with a single example, or a text without a label.
        Error
            As `Encoder.embed`.
        """
        if isinstance(texts, str) or isinstance(labels, str):
            raise TypeError("texts, labels: expected several of each, got one str")
        labels = list(several(labels, "labels"))
        texts = list(several(texts, "texts"))
        if len(texts) != len(labels):
            raise DataError(f"expected a label for each of {len(texts)} texts, got {len(labels)}")
        for label in labels:
            if not isinstance(label, str) or not label.strip():
                raise DataError(f"expected the name of a label for every text, got {label!r:.40}")
        names = sorted(set(labels))
        counts = {name: sum(label == name for label in labels) for name in names}
        _check(names, counts)
        vectors = encoder.embed(texts, normalize=True, truncate=truncate)
        x = vectors.astype(np.float64)
        y = np.array([names.index(label) for label in labels], np.int64)
        found = cross_validated(x, y, len(names), folds=folds_of(y, min(FOLDS, *counts.values())))
        fitted = fit_logistic(x, y, len(names), found.penalty)
        return cls(
            encoder,
            names,
            (fitted.weights / found.temperature).astype(np.float32),
            (fitted.bias / found.temperature).astype(np.float32),
            Trained(len(y), found.accuracy, found.log_loss, found.calibration_error, dict(counts)),
        )

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        encoder: Encoder | str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Head:
        """Read a head that `save` wrote.

        Parameters
        ----------
        path : str or path
        encoder : Encoder, str or path, optional
            None loads the one that it was trained on, by its name.
        **options
            By which an encoder is loaded; see `slmq.load_encoder`.

        Raises
        ------
        DataError
            If the file is no head, damaged, or of another encoder.
        Error
            As `slmq.load_encoder`.
        """
        file = Path(path)
        given = _read(file)
        try:
            labels = [str(label) for label in given["labels"]]
            shape = (len(labels), int(given["dimensions"]))
            weights = _array(given["weights"], shape)
            bias = _array(given["bias"], shape[:1])
            trained = Trained(**given["trained"])
            name, identity = str(given["encoder"]), str(given["identity"])
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise DataError(f"{file}: damaged: {type(error).__name__}: {error}") from None
        if encoder is None or isinstance(encoder, (str, os.PathLike)):
            opened, owned = load_encoder(encoder or name, **options), True
        else:
            opened, owned = encoder, False
        found = encoder_identity(opened)
        if found != identity:
            raise DataError(
                f"{file}: it was trained on {name!r} ({identity}), and {opened.name!r} as it is "
                f"loaded ({found}) gives other vectors"
            )
        head = cls(opened, labels, weights, bias, trained)
        head._owned = owned
        return head

    @staticmethod
    def encoder_name(path: str | os.PathLike[str]) -> str:
        """The name of the encoder that a saved head was trained on; errors as `open`."""
        return str(_read(Path(path)).get("encoder", ""))

    def save(self, path: str | os.PathLike[str], *, encoder: str | None = None) -> None:
        """Write it into a file, by convention ``NAME.head.json``.

        `encoder` is the name by which `open` loads the encoder; None is what that is called.

        Raises
        ------
        WriteError
        """
        file = Path(path)
        body = {
            "kind": KIND,
            "version": VERSION,
            "encoder": encoder or self.encoder.name,
            "identity": encoder_identity(self.encoder),
            "labels": self.labels,
            "dimensions": self._weights.shape[1],
            "weights": _written(self._weights),
            "bias": _written(self._bias),
            "trained": vars(self.trained),
        }
        temporary = file.with_name(file.name + ".tmp")
        try:
            with create(temporary, file.parent) as out:
                out.write(json.dumps(body, indent=1, ensure_ascii=False).encode("utf-8"))
                publish(out, temporary, file, file.parent)
        except OSError as error:
            raise WriteError(f"{file}: cannot be written: {error.strerror or error}") from None

    def classify(
        self, texts: str | Iterable[str], *, top_k: int | None = 1, truncate: bool = False
    ) -> list[Any]:
        """The labels of texts, the likeliest first; as `Encoder.classify`."""
        one = isinstance(texts, str)
        listed = [cast(str, texts)] if one else texts
        found = list(self.classify_stream(listed, top_k=top_k, truncate=truncate))
        return found[0] if one else found

    def classify_stream(
        self,
        texts: Iterable[str],
        *,
        top_k: int | None = 1,
        truncate: bool = False,
        first: int = 0,
    ) -> Iterator[list[Scored]]:
        """The labels of any number of texts, in order, as they come; `first` as in `Encoder`."""
        check_top_k(top_k)
        vectors = self.encoder.embed_stream(texts, normalize=True, truncate=truncate, first=first)
        return (self._scored(row, top_k) for row in vectors)

    def probabilities(self, vector: F32) -> F32:
        """How likely each label is, for the vector of a text; raises ValueError for another one."""
        rows = scores.checked_vectors(vector)
        width = self._weights.shape[1]
        if rows.shape != (1, width):
            raise ValueError(
                f"expected a vector of {width} numbers, got {' x '.join(map(str, vector.shape))}"
            )
        logits = scores.similarities(rows, self._weights, "dot")[0]
        return scores.softmax(logits + self._bias)

    def _scored(self, vector: F32, top_k: int | None) -> list[Scored]:
        likely = self.probabilities(vector)
        order = sorted(range(len(likely)), key=lambda i: (-float(likely[i]), i))
        return [Scored(self.labels[i], float(likely[i])) for i in order[:top_k]]


def _check(names: list[str], counts: dict[str, int]) -> None:
    if len(names) < 2:
        raise DataError(
            f"expected at least two labels, got {', '.join(map(repr, names)) or 'none'}"
        )
    few = [name for name in names if counts[name] < LEAST]
    if few:
        raise DataError(
            f"expected at least {LEAST} examples of every label, got one of "
            f"{', '.join(map(repr, few)):.200}"
        )


def _read(file: Path) -> Any:
    try:
        given = parse_json_object(read_regular(file, MAX_BYTES), file, "the file")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    except CheckpointError as error:
        raise DataError(str(error)) from None
    if given.get("kind") != KIND:
        raise DataError(f"{file}: expected a head that slmq has trained, found another JSON file")
    if given.get("version") != VERSION:
        raise DataError(f"{file}: expected version {VERSION}, found {given.get('version')!r:.40}")
    return given


def _written(array: F32) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode("ascii")


def _array(text: Any, shape: tuple[int, ...]) -> F32:
    found = np.frombuffer(base64.b64decode(text, validate=True), "<f4").reshape(shape)
    if not np.isfinite(found).all():
        raise ValueError("a weight is not finite")
    return found.astype(np.float32)
