"""Small batches: one token of several sequences in one step, nearly free until compute binds."""

from __future__ import annotations

from .common import THREADS
from .limits import ROUNDS, shortest_s
from .session import ModelBenchmark, open_session

MODELS = ["smollm2-135m/q4g32a", "tinyllama-cut/q4g32s"]


class Batch(ModelBenchmark):
    """A step of `rows` sequences, each with a context of 64 and logits."""

    params = (MODELS, [1, 2, 4, 8, 16], THREADS)
    param_names = ("model", "rows", "threads")
    unit = "times one row"
    repeat = (5, 50, 0.5)

    def setup(self, folder: str, model: str, rows: int, threads: int) -> None:
        self.session = open_session(folder, model, threads)
        self.step = self.session.batch(rows)

    def time_step(self, *_: object) -> None:
        self.step()

    def track_over_one_row(self, _folder: str, _model: str, rows: int, _threads: int) -> float:
        """Time of the step over that of one row, in turns, best over best."""
        one = self.session.batch(1)
        times = [(shortest_s(self.step), shortest_s(one)) for _ in range(ROUNDS)]
        return min(t[0] for t in times) / min(t[1] for t in times)
