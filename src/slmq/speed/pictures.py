"""What every picture needs: a file name that fits, and matplotlib, which is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slmq.errors import WriteError

__all__ = ["check_picture", "figure_class"]

SUFFIXES = (".svg", ".png", ".pdf")


def check_picture(path: Path) -> None:
    """Raise what would keep a picture from being written: before the work, not after.

    Raises
    ------
    ImportError
        If matplotlib is not installed; names the command that installs it.
    ValueError
        If the file's ending is not .svg, .png or .pdf.
    WriteError
        If there is no such folder.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"plot: expected a file name ending in {', '.join(SUFFIXES)}, got {path}")
    if not path.parent.is_dir():
        raise WriteError(f"plot: the folder {path.parent} does not exist")
    figure_class()


def figure_class() -> Any:
    """matplotlib's Figure; raises ImportError with the command that installs it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "charts need matplotlib, which is not installed; run `pip install matplotlib`"
        ) from error
    return Figure
