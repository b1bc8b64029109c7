"""What every checkpoint reader offers: names, shapes, metadata, and bytes without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Checkpoint", "TensorInfo"]


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor, as its header describes it.

    Parameters
    ----------
    name : str
        The name as stored.
    dtype : str
        Lower case: ``"f32"``, ``"f16"``, ``"bf16"``, ``"q4_0"``, ``"q4_1"``, ``"q8_0"``; a weight
        format (``"q4g32a"``) for a packed matrix. Types that slmq cannot decode are listed too
        (``"q4_k"``, ``"i64"``), so that errors can name them.
    shape : tuple of int
        Row-major, outermost first. A linear weight is ``(n_out, k_in)`` in both file formats.
    nbytes : int
        Stored bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class Checkpoint(Protocol):
    """A model file or folder whose headers have been checked against the size of its files."""

    @property
    def path(self) -> Path:
        """The ``.gguf`` file, or the folder of safetensors."""

    @property
    def kind(self) -> str:
        """``"gguf"``, ``"safetensors"``, or ``"slmq"`` for a folder of packed weights."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """GGUF: its key-values, arrays as lists. Folders: the parsed ``config.json``."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What is stored, by name, in the order of the file."""

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the stored bytes: read-only ``uint8[nbytes]`` over the mapped file, no copy.

        The view is aligned to the offset in the file, which safetensors does not align to the
        element size. Raises `CheckpointError` for an unknown name and `ValueError` once closed.
        """

    def release(self, name: str) -> None:
        """Give the resident pages of one tensor back; reading it again faults them in again."""

    def close(self) -> None:
        """Unmap the files. Views that still exist stay valid and keep their mapping alive."""

    def __enter__(self) -> Checkpoint:
        """Return the checkpoint itself."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
