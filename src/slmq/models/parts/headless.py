"""A decoder without its output head, as an encoder: it embeds texts, or labels them.

Qwen3 Embedding and others take a decoder as it is, with its causal attention, and pool its last
states. EmbeddingGemma lets every token see the whole text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.parts.encoder import config_labels, config_task
from slmq.models.parts.encoder_head import HeadNames, load_task_head
from slmq.models.parts.values import config_count, config_value

if TYPE_CHECKING:
    from slmq.models.family import Family
    from slmq.models.parts.gguf import GgufMap, Weights
    from slmq.plan.handle import Handle, Rope
    from slmq.plan.linear import Linear
    from slmq.plan.recorder import F32, Recording
    from slmq.weights.base import Reader

__all__ = ["Headless", "HeadlessConfig", "writes_nothing"]

BIDIRECTIONAL = "use_bidirectional_attention"
WINDOW = "sliding_window"


@dataclass(frozen=True)
class HeadlessConfig:
    """What config.json says, checked.

    Attributes
    ----------
    body : ModelConfig
        The decoder's.
    causal : bool
        Whether a token sees only those before it.
    task : {"classify", "tags"} or None
        What the head is for, if the model was saved with one.
    n_labels : int
        Outputs of that head.
    """

    body: Any
    causal: bool
    task: str | None
    n_labels: int

    @property
    def vocab_size(self) -> int:
        """Token ids."""
        return int(self.body.vocab_size)

    @property
    def hidden_size(self) -> int:
        """Numbers of a hidden state."""
        return int(self.body.hidden_size)

    @property
    def max_positions(self) -> int:
        """Most tokens of a text."""
        return int(self.body.max_positions)

    @property
    def tied(self) -> bool:
        """Whether the output head, which is not used, is said to be the embedding."""
        return bool(self.body.tied)

    norm_eps = 0.0  # of a head with a norm, which no decoder has


def writes_nothing(config: Mapping[str, Any]) -> bool:
    """Whether a decoder's configuration says that it only embeds or labels texts."""
    return config.get(BIDIRECTIONAL) is True or config_task(config) in ("classify", "tags")


class Headless:
    """A family of encoders made of one of decoders.

    Parameters
    ----------
    family : module
        Of the decoder.
    """

    def __init__(self, family: Family[Any]) -> None:
        self._family = family
        self.__name__ = family.__name__

    @property
    def GGUF(self) -> GgufMap:  # noqa: N802 (a constant of families)
        """How a GGUF file of this family maps to the Hugging Face model."""
        return self._family.GGUF

    @property
    def Config(self) -> Headless:  # noqa: N802 (a class of families)
        """What makes a `HeadlessConfig`."""
        return self

    def from_dict(self, config: Mapping[str, Any]) -> HeadlessConfig:
        """From a Hugging Face config.json; raises as that of the decoder."""
        causal = not config_value(config, BIDIRECTIONAL, bool, False)
        if not causal and config.get(WINDOW) is not None:
            config_count(config, WINDOW, low=2)  # half of it on either side
        task = config_task(config)
        told = {**config, BIDIRECTIONAL: False}
        if task in ("classify", "tags"):  # such a model was saved without an output head
            told["tie_word_embeddings"] = True
        return HeadlessConfig(
            body=self._family.Config.from_dict(told),
            causal=causal,
            task=None if task == "fill_mask" else task,
            n_labels=len(config_labels(config)),
        )

    def heads(self, _cfg: HeadlessConfig) -> dict[str, HeadNames]:
        """The heads that decoders may have, by task."""
        return {"classify": HeadNames("score", pool="last"), "tags": HeadNames("score")}

    def load(self, r: Reader, cfg: HeadlessConfig) -> Weights:
        """Reads the tensors that `forward` uses, and those of the head."""
        w = self._family.load(r, cfg.body)
        w.types = None
        w.head = load_task_head(r, cfg, self.heads(cfg), w.embed, "")
        return w

    def forward(self, p: Recording, w: Weights, cfg: HeadlessConfig) -> Handle:
        """Records the model; returns the hidden states of all tokens."""
        headless = _HeadlessRecording(p, w.lm_head, causal=cfg.causal)
        return self._family.forward(headless, w, cfg.body)

    def verdict(self, p: Recording, w: Weights, cfg: HeadlessConfig, rows: Linear) -> Handle:
        """Records the model with some rows of its output head; returns their logits."""
        headless = _HeadlessRecording(p, w.lm_head, causal=cfg.causal, rows=rows)
        return self._family.forward(headless, w, cfg.body)


class _HeadlessRecording:
    """A recording that passes all on, but for what a decoder does with its last states.

    `rows` takes the place of the output head; None leaves it out.
    """

    def __init__(
        self, p: Recording, head: Linear, *, causal: bool, rows: Linear | None = None
    ) -> None:
        self._p = p
        self._head = head
        self._causal = causal
        self._rows = rows
        self.n_ctx = p.n_ctx
        self.scope = p.scope
        self.embed = p.embed
        self.rmsnorm = p.rmsnorm
        self.head_norm = p.head_norm
        self.layernorm = p.layernorm
        self.gated = p.gated
        self.xielu = p.xielu
        self.rope = p.rope
        self.rotate = p.rotate
        self.scaled = p.scaled
        self.attention_to = p.attention_to
        self.scale_by_position = p.scale_by_position
        self.convolution = p.convolution
        self.decays = p.decays
        self.delta_rule = p.delta_rule
        self.gate = p.gate
        self.route = p.route
        self.mixture = p.mixture

    def select(self, x: Handle, pool: str = "row") -> Handle:
        """All rows where there is no head: what is pooled is chosen later."""
        return x if self._rows is None else self._p.select(x, pool)

    def linear(
        self,
        x: Handle,
        weights: Linear | Sequence[Linear],
        add: Handle | None = None,
        activation: str | None = None,
        softcap: float = 0.0,
    ) -> Handle:
        """As it is, without the output head, or with some rows of it."""
        if weights is self._head:
            if self._rows is None:
                return x
            weights = self._rows
        return self._p.linear(x, weights, add, activation, softcap)

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
        causal: bool = True,
        bias: F32 | None = None,
        sinks: F32 | None = None,
    ) -> Handle:
        """Causal, or of the whole text, where half of a window lies on either side."""
        return self._p.attention(
            q,
            k,
            v,
            head_dim=head_dim,
            rope=rope,
            scale=scale,
            window=window if self._causal else window // 2,
            softcap=softcap,
            causal=causal and self._causal,
            bias=bias,
            sinks=sinks,
        )
