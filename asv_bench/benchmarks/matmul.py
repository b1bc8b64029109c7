"""Products with a packed matrix: what nearly all of a model's time goes to."""

from __future__ import annotations

from time import perf_counter

from slmq import _native

from .common import FORMATS, random_matrix, random_rows, runnable_threads

# Outputs x inputs: SmolLM2-135M's gate and up, and TinyLlama-1.1B's.
SHAPES = {"3072x576": (3072, 576), "11264x2048": (11264, 2048)}


class Matmul:
    """Time of `x @ w.T` for one token (decode) and for a chunk of a prompt."""

    version = "1"
    params = (FORMATS, list(SHAPES), [1, 32])
    param_names = ("format", "shape", "tokens")

    def setup(self, format_name: str, shape: str, tokens: int) -> None:
        self.threads = runnable_threads()
        n, k = SHAPES[shape]
        self.weight = random_matrix(n, k, format_name)
        self.x = random_rows(tokens, k)

    def time_matmul(self, format_name: str, shape: str, tokens: int) -> None:
        self.weight.matmul(self.x, n_threads=self.threads)


class Bandwidth:
    """One token against weights too large for any cache: bound by memory, so by bytes."""

    version = "1"
    params = (FORMATS,)
    param_names = ("format",)
    unit = "of read bandwidth"
    shape = (65536, 2048)
    seconds = 0.5

    def setup(self, format_name: str) -> None:
        self.threads = runnable_threads()
        self.weight = random_matrix(*self.shape, format_name)
        self.x = random_rows(1, self.shape[1])

    def track_read_fraction(self, format_name: str) -> float:
        limit = _native.memory_read_gb_per_s(self.threads) * 1e9
        return self.weight.nbytes / self.best_seconds() / limit

    def best_seconds(self) -> float:
        """The quickest product within the time that the read test takes as well."""
        best, end = float("inf"), perf_counter() + self.seconds
        while (start := perf_counter()) < end:
            self.weight.matmul(self.x, n_threads=self.threads)
            best = min(best, perf_counter() - start)
        return best
