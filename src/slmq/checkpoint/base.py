"""What every checkpoint reader offers: names, shapes, metadata, and bytes without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from slmq.checkpoint.mapped import MappedFile

__all__ = ["Checkpoint", "Layout", "TensorInfo"]


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


@dataclass(frozen=True)
class Layout:
    """How tensors are named, and how their values lie. The defaults are Hugging Face's folders.

    Attributes
    ----------
    gguf_terms : bool
        Names of tensors, their types and the metadata are GGUF's, not Hugging Face's.
    gguf_tensors : bool
        There may be tensors that only llama.cpp's converter makes: divisors of rope's frequencies,
        norms of all heads in one. Folders that were packed from a GGUF file have them, too.
    own_rows : bool
        Fused and transposed matrices lie as the model's own files have them: by head, as [k, n].
    interleaved_rows : bool
        llama.cpp's converter may have put the rows of q and k in pairs for its rope.
    stacked_norms : bool
        A norm of all heads may have the shape [heads, size].
    """

    gguf_terms: bool = False
    gguf_tensors: bool = False
    own_rows: bool = True
    interleaved_rows: bool = False
    stacked_norms: bool = False


class Checkpoint(Protocol):
    """A model file or folder whose headers have been checked against the size of its files."""

    @property
    def path(self) -> Path:
        """The ``.gguf`` file, or the folder of safetensors."""

    @property
    def kind(self) -> str:
        """Its name for people: ``"gguf"``, ``"safetensors"``, or ``"slmq"`` for packed weights.

        Nothing is decided by it; the properties below say what a reader needs to know.
        """

    @property
    def layout(self) -> Layout:
        """How its tensors are named, and how their values lie."""

    @property
    def packed(self) -> bool:
        """Whether the weights are packed, ready to be mapped and run."""

    @property
    def holds_tokenizer(self) -> bool:
        """Whether the metadata hold the tokenizer, which otherwise is in files beside the weights.

        It is then built in Python, holding the interpreter's lock for as long as that takes.
        """

    @property
    def architecture_key(self) -> str:
        """The key of the metadata that names the model's architecture."""

    @property
    def licence_key(self) -> str:
        """The key of the metadata that names the model's licence."""

    @property
    def files(self) -> tuple[MappedFile, ...]:
        """The mapped files."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """GGUF: its key-values, arrays as lists. Folders: the parsed ``config.json``."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What is stored, by name, in the order of the file."""

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the stored bytes: read-only ``uint8[nbytes]`` over the mapped file, no copy.

        The view is aligned to the offset in the file, which safetensors does not align to the
        element size. Raises `CheckpointError` for an unknown name and `ClosedError` once closed.
        """

    def read(self, name: str, first: int = 0, last: int | None = None) -> npt.NDArray[np.uint8]:
        """Return the stored bytes, or those of rows `first` to `last`, in memory of their own.

        Raises `CheckpointError` also if the file was cut short since it was opened, which kills
        readers of `raw`.
        """

    def held(self, name: str) -> npt.NDArray[np.uint8]:
        """What `read` returns, kept until `release`: for weights that are read in pieces."""

    def release(self, name: str) -> None:
        """Give the memory of one tensor back: its resident pages, and what `held` keeps."""

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
