from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def philox4x64(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]: ...
def random_word(seed: int, index: int) -> int: ...
def logsumexp(logits: NDArray[np.float32]) -> float: ...
def top_ids(logits: NDArray[np.float32], k: int) -> list[int]: ...

class Sampler:
    @property
    def n_vocab(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def draws(self) -> int: ...
    def __init__(
        self,
        n_vocab: int,
        softmax: int | Callable[[Any, float], NDArray[np.float32]],
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int = 0,
    ) -> None: ...
    def observe(self, tokens: Iterable[int]) -> None: ...
    def accept(self, token: int) -> None: ...
    def sample(
        self, logits: NDArray[np.float32], allowed: NDArray[np.int32] | None = None
    ) -> int: ...

def sample_rows(
    samplers: Sequence[Sampler],
    logits: NDArray[np.float32],
    allowed: Sequence[NDArray[np.int32] | None] | None = None,
) -> list[int | BaseException]: ...
