"""What a family of models is: a module with four names, and an encoder's one with five."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from slmq.models.parts.encoder_head import HeadNames
from slmq.models.parts.gguf import GgufMap, Weights
from slmq.plan.handle import Handle
from slmq.plan.recorder import Recording
from slmq.weights.base import Reader

__all__ = ["EncoderFamily", "Family", "ModelConfig"]

C = TypeVar("C", bound="ModelConfig")


class ModelConfig(Protocol):
    """A checked configuration, whatever the family; the family's own has more."""

    @property
    def vocab_size(self) -> int:
        """Token ids."""

    @property
    def max_positions(self) -> int:
        """Positions that the model was made for."""

    @classmethod
    def from_dict(cls: type[C], config: Mapping[str, Any]) -> C:
        """From a Hugging Face config.json.

        Raises
        ------
        CheckpointError
            If a value is missing or makes no sense.
        UnsupportedModelError
            If it asks for something that the family lacks.
        """


class Family(Protocol[C]):
    """A module of `slmq.models`; C is its `Config`."""

    __name__: str

    @property
    def Config(self) -> type[C]:  # noqa: N802 (a class)
        """What config.json says, checked."""

    @property
    def GGUF(self) -> GgufMap:  # noqa: N802 (a constant)
        """How a GGUF file of this family maps to the Hugging Face model."""

    def load(self, r: Reader, cfg: C, /) -> Weights:
        """Reads the tensors that `forward` uses."""

    def forward(self, p: Recording, w: Weights, cfg: C, /) -> Handle:
        """Records the model; returns the logits of the selected rows.

        An encoder returns the hidden states of all tokens, and selects none.
        """


class EncoderFamily(Family[C], Protocol[C]):
    """A module of `slmq.models` whose model writes nothing: its `forward` ends before any head."""

    def heads(self, cfg: C, /) -> Mapping[str, HeadNames]:
        """The heads that a model may have been saved with, by task."""
