"""Products with a packed matrix: what nearly all of a model's time goes to."""

from __future__ import annotations

from time import perf_counter

from slmq import _native

from .common import FORMATS, large_matrix, random_matrix, random_rows, runnable_threads

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
    """One token against weights far larger than a cache: bound by memory, so by bytes."""

    version = "1"
    params = (FORMATS,)
    param_names = ("format",)
    unit = "of read bandwidth"
    nbytes = 256 << 20
    rounds = 8

    def setup(self, format_name: str) -> None:
        self.threads = runnable_threads()
        self.weight = large_matrix(2048, format_name, self.nbytes)
        self.x = random_rows(1, 2048)

    def track_read_fraction(self, format_name: str) -> float:
        """Best against best of rounds in turn, so that a busy neighbour slows both."""
        limit, rate = 0.0, 0.0
        for _ in range(self.rounds):
            limit = max(limit, _native.memory_read_gb_per_s(self.threads, self.nbytes, 0.1))
            rate = max(rate, self.product_gb_per_s())
        return rate / limit

    def product_gb_per_s(self) -> float:
        start = perf_counter()
        self.weight.matmul(self.x, n_threads=self.threads)
        return self.weight.nbytes / (perf_counter() - start) / 1e9
