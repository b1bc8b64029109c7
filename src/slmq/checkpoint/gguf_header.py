"""The GGUF header, value by value: a cursor that checks every count and length before it acts.

A header is hostile input. Nothing here allocates or loops by a number from the file before that
number has been held against the bytes that are left, so a false count fails at once.
"""

from __future__ import annotations

import struct
from typing import Any, NoReturn

import numpy as np

import slmq._native as _native
from slmq.checkpoint.mapped import MappedFile
from slmq.errors import CheckpointError

__all__ = ["Cursor"]

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

_NUMBERS: dict[int, np.dtype[Any]] = {  # value type -> its NumPy type
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("<u1"),  # bool: one byte, 0 or 1
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SMALLEST = {t: d.itemsize for t, d in _NUMBERS.items()} | {_STRING: 8, _ARRAY: 12}  # bytes

# Far above any real header (the largest vocabularies: 20 MB, 1.3 million elements in all arrays),
# low enough that a hostile one of any size costs a second and some hundred megabytes at most.
MAX_HEADER_BYTES = 256 << 20
FIRST_BYTES = 1 << 20  # that are read at first; more when they are needed
MAX_ELEMENTS = 4 << 20
ARRAY_COST = 64  # an array within an array counts as this many elements: it takes as long
MAX_ENTRIES = 1 << 16
MAX_NAME_BYTES = 1024
MAX_NESTING = 4


class Cursor:
    """Reads a header from its start. Raises `CheckpointError` for whatever does not hold.

    Attributes
    ----------
    position : int
        Offset of the next byte, never beyond the end of the file.
    """

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.position = 0
        self._limit = min(file.size, MAX_HEADER_BYTES)
        self._data = file.read(0, min(self._limit, FIRST_BYTES)).tobytes()
        self._elements_left = MAX_ELEMENTS

    def fail(self, message: str) -> NoReturn:
        """Raise `CheckpointError` with the file's name."""
        raise CheckpointError(message, file=self.file.path)

    @property
    def start(self) -> bytes:
        """The first bytes of the file, 64 if it has so many."""
        return self._data[:64]

    def _load(self, end: int) -> None:
        """Read at least up to `end`: not from the mapping, for the file may be cut short now."""
        if end > len(self._data):
            size = min(self._limit, max(end, 4 * len(self._data)))
            self._data = self.file.read(0, size).tobytes()

    def take(self, nbytes: int, what: str) -> int:
        """Skip `nbytes` and return the offset where they begin."""
        begin = self.position
        if nbytes > self._limit - begin:
            self._too_long(begin, nbytes, what)
        self.position = begin + nbytes
        self._load(self.position)
        return begin

    def u32(self, what: str) -> int:
        """Read an unsigned 32-bit number."""
        begin = self.take(4, what)
        return int(_U32.unpack_from(self._data, begin)[0])

    def u64(self, what: str) -> int:
        """Read an unsigned 64-bit number."""
        begin = self.take(8, what)
        return int(_U64.unpack_from(self._data, begin)[0])

    def entries(self, what: str) -> int:
        """Read the number of records of a kind, keys or tensors."""
        count = self.u64(f"the number of {what}")
        if count > MAX_ENTRIES:
            self.fail(f"claims {count} {what}, expected at most {MAX_ENTRIES}: the file is corrupt")
        return count

    def name(self, what: str) -> str:
        """Read a key or a tensor name: UTF-8, not empty, not absurdly long."""
        length = self.u64(f"the length of {what}")
        if not 0 < length <= MAX_NAME_BYTES:
            self.fail(f"{what} is {length} bytes long, expected 1 to {MAX_NAME_BYTES}")
        return self._text(length, what)

    def value(self, key: str) -> Any:
        """Read a typed value: int, float, bool, str, or a list of one kind of these."""
        return self._value(self.u32(f"the type of {key!r}"), key, depth=0)

    def _value(self, kind: int, key: str, depth: int) -> Any:
        if kind not in _SMALLEST:
            self.fail(f"key {key!r} has the unknown value type {kind}, expected 0 to 12")
        if kind == _STRING:
            return self._bytes_as_text(self.u64(f"the length of {key!r}"), repr(key))
        if kind == _ARRAY:
            return self._array(key, depth)
        return self._numbers(kind, 1, key)[0]

    def _array(self, key: str, depth: int) -> list[Any]:
        kind = self.u32(f"the element type of {key!r}")
        count = self.u64(f"the length of {key!r}")
        if kind not in _SMALLEST:
            self.fail(f"array {key!r} has the unknown element type {kind}, expected 0 to 12")
        if depth >= MAX_NESTING:
            self.fail(f"array {key!r} is nested more than {MAX_NESTING} deep")
        if count * _SMALLEST[kind] > self._limit - self.position:
            self._too_long(self.position, count * _SMALLEST[kind], f"array {key!r} of {count}")
        self._elements_left -= count * (ARRAY_COST if kind == _ARRAY else 1)
        if self._elements_left < 0:
            self.fail(f"arrays hold more than {MAX_ELEMENTS} elements in all, up to {key!r}")
        if kind == _STRING:
            return self._strings(count, key)
        if kind == _ARRAY:
            return [self._array(key, depth + 1) for _ in range(count)]
        return self._numbers(kind, count, key)

    def _numbers(self, kind: int, count: int, key: str) -> list[Any]:
        dtype = _NUMBERS[kind]
        begin = self.take(count * dtype.itemsize, repr(key))
        numbers = np.frombuffer(self._data, dtype, count, begin)
        if kind == _BOOL:
            if count and int(numbers.max()) > 1:
                self.fail(f"{key!r} is a bool with the value {int(numbers.max())}, expected 0 or 1")
            numbers = numbers.astype(np.bool_)
        return list(numbers.tolist())

    def _text(self, length: int, what: str) -> str:
        begin = self.take(length, what)
        try:
            return self._data[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError as e:
            self.fail(f"{what} is not UTF-8: {e.reason} at byte {begin + e.start} of the file")

    def _bytes_as_text(self, length: int, what: str) -> str:
        # An author's name in Latin-1 is nobody's concern. What is not UTF-8 survives as in arrays.
        begin = self.take(length, what)
        return self.file.buffer[begin : begin + length].decode("utf-8", "surrogateescape")

    def _strings(self, count: int, key: str) -> list[str]:
        # Vocabularies have hundreds of thousands of these: a loop for the native code.
        # A vocabulary may hold pieces of characters, which are not UTF-8 by themselves, so bytes
        # that do not decode survive as surrogates: s.encode("utf-8", "surrogateescape").
        strings: list[str] = []
        while True:
            data, left = self._data, count - len(strings)
            found, self.position = _native.read_strings(data, self.position, len(data), left)
            strings += found
            if len(strings) == count:
                return strings
            if len(data) < self._limit:
                self._load(len(data) + 1)
                continue
            begin = self.position
            if begin + 8 > self._limit:
                self._too_long(begin, 8, f"the length of an element of {key!r}")
            length = int(_U64.unpack_from(data, begin)[0])
            self._too_long(begin + 8, length, f"an element of {key!r}")

    def _too_long(self, begin: int, nbytes: int, what: str) -> NoReturn:
        if self._limit < self.file.size:
            self.fail(
                f"{what} needs {nbytes} bytes at offset {begin}, beyond the {self._limit} bytes "
                f"that a header may take: the file is corrupt"
            )
        self.fail(
            f"the file ends inside its header: expected {nbytes} bytes for {what} at offset "
            f"{begin}, found {self.file.size - begin}. It is truncated (was a download cut "
            f"short?) or corrupt; download it again"
        )
