"""The few bytes of protocol buffers that a SentencePiece model needs, read as hostile input."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from slmq.errors import TokenizerError

__all__ = ["fields_of", "float_of", "signed"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10


def fields_of(data: bytes, what: str) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of every field of a message.

    Parameters
    ----------
    data : bytes
        The message.
    what : str
        Its name, for errors.

    Yields
    ------
    (int, int or bytes)
        Whole numbers as they are stored, without sign; strings, messages and fixed-width numbers
        as their bytes.

    Raises
    ------
    TokenizerError
        The message is cut short or is none.
    """
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position, what)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, position = _varint(data, position, what)
            yield number, value
            continue
        if kind == BYTES:
            length, position = _varint(data, position, what)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise TokenizerError(f"{what}: not a protocol buffer: field of unknown kind {kind}")
        if number == 0 or length > end - position:
            raise TokenizerError(
                f"{what}: expected {length} bytes of field {number} at {position}, found "
                f"{end - position}: the file is truncated or not a protocol buffer"
            )
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int, what: str) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[position : position + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & (1 << 64) - 1, position + i + 1
    raise TokenizerError(f"{what}: no number at byte {position}: the file is truncated or corrupt")


def signed(value: int) -> int:
    """A whole number that may be negative: two's complement of 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def float_of(value: int | bytes, what: str) -> float:
    """The float32 of a field."""
    if not isinstance(value, bytes) or len(value) != 4:
        raise TokenizerError(f"{what}: expected a float of 4 bytes")
    return float(struct.unpack("<f", value)[0])
