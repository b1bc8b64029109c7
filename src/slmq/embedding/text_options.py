"""Which texts of a file an encoder reads: the options that its commands share."""

from __future__ import annotations

from dataclasses import dataclass

from slmq.settings import check_options, option, shown, truth

__all__ = ["TextOptions"]


def _column(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected the name of a column, got {shown(value)}")
    return value


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Which texts of a file are read, and how.

    Parameters
    ----------
    column : str
        With the texts; of no effect for .txt.
    no_header : bool
        Whether the columns of CSV or TSV have no names; they are "1", "2", ... then.
    truncate : bool
        Whether texts that are too long are cut off.
    """

    column: str = option("text", "Column with the texts. Default: text.", _column)
    no_header: bool = option(False, "Columns have no names; they are 1, 2, ...", truth)
    truncate: bool = option(
        False, "Cut off texts that are too long. Default: the first one is an error.", truth
    )

    def __post_init__(self) -> None:
        check_options(self)
