"""Decoding: one token at a time, bound by reading the weights."""

from __future__ import annotations

from .common import THREADS
from .limits import read_fraction
from .session import PROMPT, ModelBenchmark, open_session

MODELS = [
    "smollm2-135m/q4g32a",
    "smollm2-135m/q4g32s",
    "smollm2-135m/q8g32s",
    "tinyllama-cut/q4g32s",
    "tinyllama-cut/q4g32a",
    "tinyllama-cut/q8g32s",
]


class Decode(ModelBenchmark):
    """One token with its logits after a prompt of 64."""

    params = (MODELS, THREADS)
    param_names = ("model", "threads")
    unit = "fraction of read bandwidth"
    repeat = (10, 100, 0.7)

    def setup(self, folder: str, model: str, threads: int) -> None:
        self.session = open_session(folder, model, threads)
        self.session.fill(PROMPT)

    def time_token(self, *_: object) -> None:
        self.session.decode()

    def track_read_fraction(self, _folder: str, _model: str, threads: int) -> float:
        """Weights and cache that a token must read, over what the machine reads meanwhile."""
        session = self.session
        return read_fraction(session.decode, session.decode_bytes(), threads)
