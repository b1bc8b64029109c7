"""Long contexts: what attention adds to a token, bound by reading keys and values."""

from __future__ import annotations

from .common import THREADS
from .limits import ROUNDS, read_bytes_per_s
from .session import PROMPT, ModelBenchmark, Session, elapsed_s, open_session

MODEL = "smollm2-cut/q4g32a"
VALUE_BYTES = {"f16": 2.0, "int8": 1.0}  # scales of int8 are left out: they are a few per cent


class Context(ModelBenchmark):
    """One token after thousands."""

    params = (["f16", "int8"], [1024, 8192], THREADS)
    param_names = ("kv", "positions", "threads")
    unit = "fraction of read bandwidth"
    repeat = (5, 50, 0.5)
    rounds = 1  # filling a context takes seconds

    def setup(self, folder: str, kv: str, positions: int, threads: int) -> None:
        self.session = open_session(folder, MODEL, threads, kv)
        self.session.fill(positions)

    def time_token(self, *_: object) -> None:
        self.session.decode()

    def track_attention_read_fraction(
        self, _folder: str, kv: str, positions: int, threads: int
    ) -> float:
        """Bytes of the longer cache over the time that it adds to a short one's, over the limit."""
        session = self.session
        more = session.cache_bytes(positions - PROMPT, VALUE_BYTES[kv])
        rate, longer, shorter = 0.0, float("inf"), float("inf")
        for _ in range(ROUNDS):
            rate = max(rate, read_bytes_per_s(threads, more))
            longer = min(longer, self.seconds(session, positions))
        session.fill(PROMPT)
        for _ in range(ROUNDS):
            shorter = min(shorter, self.seconds(session, PROMPT))
        return more / (longer - shorter) / rate

    def seconds(self, session: Session, positions: int) -> float:
        """The fastest of a few tokens at this length."""
        return min(elapsed_s(session.decode) for _ in range(3))
