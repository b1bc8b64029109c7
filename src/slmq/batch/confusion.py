"""Which labels were given for which, as numbers, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq.speed.pictures import check_picture, figure_class

__all__ = ["Confusion"]


@dataclass(frozen=True)
class Confusion:
    """How often each label was given for each right one.

    Attributes
    ----------
    labels : tuple of str
    counts : tuple of tuple of int
        A row for each right label, with the labels that were given.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, labels: Sequence[str], pairs: Iterable[tuple[str, str]]) -> Confusion:
        """Count pairs of right and given labels."""
        place = {label: i for i, label in enumerate(labels)}
        counts = [[0] * len(labels) for _ in labels]
        for right, given in pairs:
            counts[place[right]][place[given]] += 1
        return cls(tuple(labels), tuple(map(tuple, counts)))

    @property
    def accuracy(self) -> float:
        """Share of the rows whose label is right."""
        total = sum(map(sum, self.counts))
        return sum(row[i] for i, row in enumerate(self.counts)) / total if total else 0.0

    @property
    def recalls(self) -> dict[str, float | None]:
        """Of the rows of each right label, the share that got it; None where there are no rows."""
        return {
            label: row[i] / sum(row) if sum(row) else None
            for i, (label, row) in enumerate(zip(self.labels, self.counts, strict=True))
        }

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "accuracy": self.accuracy,
            "recalls": self.recalls,
            "labels": list(self.labels),
            "confusion": [list(row) for row in self.counts],
        }

    def table(self) -> list[list[str]]:
        """Rows of text: right labels down, given ones across."""
        head = ["right \\ given", *self.labels]
        return [head, *([n, *map(str, r)] for n, r in zip(self.labels, self.counts, strict=True))]

    def draw(self, path: Path, title: str) -> None:
        """Draw the matrix; errors as `slmq.speed.pictures.check_picture`."""
        check_picture(path)
        import matplotlib as mpl

        size = max(3.5, 1.6 + 0.8 * len(self.labels))
        with mpl.rc_context({"svg.fonttype": "none", "font.size": 9}):
            figure = figure_class()(figsize=(size + 0.6, size), layout="constrained")
            axes = figure.add_subplot()
            shares = [[n / max(1, sum(row)) for n in row] for row in self.counts]
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for i, row in enumerate(self.counts):
                for j, count in enumerate(row):
                    ink = "white" if shares[i][j] > 0.5 else "black"
                    text = f"{count}\n{shares[i][j]:.0%}"
                    axes.text(j, i, text, ha="center", va="center", color=ink)
            places = range(len(self.labels))
            axes.set_xticks(places, self.labels, rotation=30, ha="right")
            axes.set_yticks(places, self.labels)
            axes.set(xlabel="given", ylabel="right")
            axes.set_title(f"{title}\naccuracy {self.accuracy:.1%}", fontsize=10)
            figure.savefig(path, dpi=150)
