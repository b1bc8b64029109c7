"""The steps that a model's `forward` may record, whoever keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from slmq.plan.handle import Handle, Rope
from slmq.plan.linear import Linear

__all__ = ["Recording"]

F32 = npt.NDArray[np.float32]


class Recording(Protocol):
    """What `forward` is given. `p` in model files.

    `Recorder` says what each step computes; the quantizer records one layer at a time.
    """

    @property
    def n_ctx(self) -> int:
        """Most positions of a sequence, chosen when the model is loaded: some ropes need it."""

    def scope(self, name: str) -> AbstractContextManager[None]:
        """Names the steps recorded inside; "layer I" is one that calibration can take apart."""

    def embed(self, weight: Linear, scale: float = 1.0, positions: Linear | None = None) -> Handle:
        """Rows of the embedding at the run's token ids."""

    def rmsnorm(self, x: Handle, weight: F32, eps: float, add: Handle | None = None) -> Handle:
        """Rows divided by their root mean square."""

    def head_norm(self, x: Handle, weight: F32, eps: float) -> Handle:
        """`rmsnorm` of every head by itself."""

    def layernorm(
        self, x: Handle, norm: tuple[F32, F32 | None], eps: float, head_dim: int | None = None
    ) -> Handle:
        """Rows with their mean subtracted, divided by their standard deviation."""

    def linear(
        self,
        x: Handle,
        weights: Linear | Sequence[Linear],
        add: Handle | None = None,
        activation: str | None = None,
        softcap: float = 0.0,
    ) -> Handle:
        """x @ weight.T; of several weights in one step, whose results `split()` parts."""

    def gated(self, x: Handle, gate: Linear, up: Linear, activation: str) -> Handle:
        """f(x @ gate.T) * (x @ up.T), f by its name: "silu" or "gelu_tanh"."""

    def rope(self, frequencies: F32, factor: float = 1.0) -> Rope:
        """Angles position * frequency."""

    def attention(
        self,
        q: Handle,
        k: Handle,
        v: Handle,
        *,
        head_dim: int,
        rope: Rope | None = None,
        scale: float | None = None,
        window: int = 0,
        softcap: float = 0.0,
    ) -> Handle:
        """Causal attention over all cached positions."""

    def select(self, x: Handle) -> Handle:
        """The rows whose logits the run asks for."""
