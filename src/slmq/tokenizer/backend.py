"""The border to the `tokenizers` library: its failures, also Rust panics, become our errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from slmq.errors import Error, TokenizerError

__all__ = ["library_errors"]


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Raise whatever the library raises inside as `TokenizerError`, with `what` before it."""
    try:
        yield
    except Error:
        raise
    except Exception as e:
        raise TokenizerError(f"{what}: {e!s:.400}") from e
    except BaseException as e:
        # A panic in Rust arrives as an exception of its own that is no Exception.
        if type(e).__module__ != "pyo3_runtime":
            raise
        raise TokenizerError(f"{what}: the tokenizers library failed: {e!s:.400}") from e
