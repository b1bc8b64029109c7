"""The numbers that `benchmarks/regress` judges a change by.

Each is the time of some work over the least time that the machine could take for it, both measured
in turn in one process: a slower or busier machine moves both, so the quotient holds still where
seconds do not. Lower is better, and 1 is the limit, so asv calls a rise a regression.
"""

from __future__ import annotations

from .limits import fraction, integer_macs_per_s, read_fraction
from .session import PROMPT, ModelBenchmark, Session, open_session

ROWS, TOKENS = 8, 256


def decode(session: Session) -> float:
    session.fill(PROMPT)
    return read_fraction(session.decode, session.decode_bytes(), session.threads)


def batch(session: Session) -> float:
    count = session.weight_read_bytes() + ROWS * session.cache_bytes(PROMPT)
    return read_fraction(session.batch(ROWS), count, session.threads)


def prefill(session: Session) -> float:
    return fraction(
        lambda: integer_macs_per_s(session.threads),
        lambda: session.prefill(TOKENS),
        session.prefill_macs(TOKENS),
    )


WORK = {"decode": decode, f"batch of {ROWS}": batch, f"prefill of {TOKENS}": prefill}


class OverLimit(ModelBenchmark):
    """Time over the least time: of memory for decoding, of integer arithmetic for prompts."""

    params = (list(WORK), ["smollm2-135m/q4g32a", "tinyllama-cut/q4g32s"], [1, 2])
    param_names = ("work", "model", "threads")
    unit = "times the limit's time"

    def setup(self, folder: str, work: str, model: str, threads: int) -> None:
        self.session = open_session(folder, model, threads)

    def track_over_limit(self, _folder: str, work: str, _model: str, _threads: int) -> float:
        return 1 / WORK[work](self.session)
