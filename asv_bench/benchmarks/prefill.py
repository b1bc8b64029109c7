"""Reading a prompt: bound by integer arithmetic."""

from __future__ import annotations

from .common import THREADS
from .limits import fraction, integer_macs_per_s
from .session import ModelBenchmark, open_session

MODELS = ["smollm2-135m/q4g32a", "tinyllama-cut/q4g32s"]


class Prefill(ModelBenchmark):
    """A prompt into an empty context, with the logits of its last token."""

    params = (MODELS, [16, 128, 512], THREADS)
    param_names = ("model", "tokens", "threads")
    unit = "fraction of integer peak"
    repeat = (3, 20, 1.0)

    def setup(self, folder: str, model: str, tokens: int, threads: int) -> None:
        self.session = open_session(folder, model, threads)

    def time_prompt(self, _folder: str, _model: str, tokens: int, _threads: int) -> None:
        self.session.prefill(tokens)

    def track_integer_fraction(self, _folder: str, _model: str, tokens: int, threads: int) -> float:
        """Multiply-accumulates with weights over the int8 peak meanwhile.

        With activations of sixteen bits, two int8 products for each, 0.5 is full use.
        """
        session = self.session
        return fraction(
            lambda: integer_macs_per_s(threads),
            lambda: session.prefill(tokens),
            amount=session.prefill_macs(tokens),
        )
