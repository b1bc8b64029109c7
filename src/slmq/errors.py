"""Every exception that slmq raises on purpose, in one tree under `Error`.

Invalid Python arguments (a negative temperature, an array of the wrong dtype) stay `ValueError` and
`TypeError`; the classes here are for what the outside world hands us: files, models, networks, and
other threads and processes. None is raised as a bare `Error`: a caller can tell them apart.
"""

from __future__ import annotations

import os

__all__ = [
    "BusyError",
    "CacheFullError",
    "CheckpointError",
    "ClosedError",
    "ConstraintError",
    "ContextOverflowError",
    "DataError",
    "DeadlineError",
    "DownloadError",
    "Error",
    "IncompleteError",
    "ModelNotFoundError",
    "TemplateError",
    "TokenizerError",
    "ToolServerError",
    "UnsupportedModelError",
    "WriteError",
    "printable",
]


class Error(Exception):
    """Base class of the errors of slmq."""


class ClosedError(Error, ValueError):
    """A model, chat, sequence or checkpoint was used after it was closed.

    Also a `ValueError`, which Python's own files raise in this case.
    """


class ConstraintError(Error, ValueError):
    """A schema, regular expression or grammar is wrong, too complex, or cannot be enforced."""


class IncompleteError(Error, ValueError):
    """An answer ended before its value was complete, so there is none."""


class DataError(Error):
    """A text or table that was given cannot be read, or lacks what is needed from it."""


class WriteError(Error):
    """A file or folder cannot be written: it exists, the disk is full, or it is not ours."""


class UnsupportedModelError(Error):
    """The model's architecture, format or tokenizer kind is one that slmq lacks."""


class CheckpointError(Error):
    """A checkpoint file is missing, cut short, corrupt or contradicts itself, or computes NaN.

    Parameters
    ----------
    message : str
        What was expected and what was found.
    file : str or os.PathLike, optional
        The file at fault; shown before the message.
    tensor : str, optional
        The tensor at fault; shown before the message.

    Attributes
    ----------
    message : str
        The message alone, without file and tensor.
    file : str or None
        The file at fault.
    tensor : str or None
        The tensor at fault.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = None if file is None else os.fspath(file)
        self.tensor = tensor

    def __str__(self) -> str:
        where = "" if self.file is None else f"{self.file}: "
        which = "" if self.tensor is None else f"tensor {self.tensor!r}: "
        return f"{where}{which}{self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exception pickles its args only, so file and tensor travel in the state.
        return type(self), (self.message,), {"file": self.file, "tensor": self.tensor}


class ContextOverflowError(Error):
    """A sequence would grow beyond the context of the model; nothing was truncated."""


class BusyError(Error):
    """What was asked for is in use, or too much waits already; try again later.

    Parameters
    ----------
    message : str
    retry_after_s : float, optional
        Seconds after which it should be worth another try, if that can be told.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(Error, TimeoutError):
    """An answer was not complete when its deadline was over."""


class CacheFullError(Error, MemoryError):
    """The cache of keys and values may not hold what was asked for; its limit is in the message."""


class ModelNotFoundError(Error):
    """No catalogue entry, folder, file or repository answers to the name that was given."""


class DownloadError(Error):
    """A model could not be fetched, or what arrived is not what the catalogue promises."""


class TemplateError(Error):
    """A chat template is missing or invalid, left its sandbox or refused the messages."""


class TokenizerError(Error):
    """A tokenizer definition is missing, corrupt or of a kind that slmq lacks."""


class ToolServerError(Error):
    """A server of tools cannot be started, does not answer, or says that a tool failed."""


def printable(text: str, longest: int = 200) -> str:
    """A stranger's words for a message: one line, nothing that moves a cursor, not endless."""
    shown = "".join(sign if sign.isprintable() else "?" for sign in text[:longest])
    return shown if len(text) <= longest else f"{shown}…"
