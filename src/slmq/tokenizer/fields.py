"""Typed access to the metadata of a GGUF file, which may hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from slmq.errors import TokenizerError
from slmq.tokenizer.special import usable_ids

__all__ = ["Fields"]

T = TypeVar("T")


class Fields:
    """Reads keys of one type; None when a key is absent, `TokenizerError` when it is wrong.

    Parameters
    ----------
    metadata : Mapping
        Key-values of the file.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def fail(self, message: str) -> NoReturn:
        """Raise `TokenizerError`."""
        raise TokenizerError(message)

    def text(self, key: str) -> str | None:
        """Read a string."""
        return self._one(key, str, "a string")

    def flag(self, key: str) -> bool | None:
        """Read a truth value."""
        return self._one(key, bool, "true or false")

    def token_id(self, key: str, n_vocab: int) -> int | None:
        """Read a token id; None where there is none, or one that the vocabulary lacks."""
        return next(iter(usable_ids(self._metadata.get(key), n_vocab, key)), None)

    def array(self, key: str, kind: type[T], length: int | None = None) -> list[T] | None:
        """Read a list whose elements are all of one type, of a given length if one is given."""
        values = self._metadata.get(key)
        if values is None:
            return None
        if not isinstance(values, list):
            self.fail(f"{key}: expected a list of {kind.__name__}, got {type(values).__name__}")
        if not set(map(type, values)) <= {kind}:
            i, value = next((i, v) for i, v in enumerate(values) if type(v) is not kind)
            got = f"{type(value).__name__} at index {i}"
            self.fail(f"{key}: expected a list of {kind.__name__}, got {got}")
        if length is not None and len(values) != length:
            self.fail(f"{key}: expected {length} entries, one for each token, got {len(values)}")
        return values

    def _one(self, key: str, kind: type[T], expected: str) -> T | None:
        value = self._metadata.get(key)
        if value is not None and type(value) is not kind:
            self.fail(f"{key}: expected {expected}, got {type(value).__name__} {value!r:.40}")
        return value
