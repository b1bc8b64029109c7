"""`Router`: looks at a request once, and says which model is to answer it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from slmq.embedding.encoder import Encoder
from slmq.embedding.loading import load_encoder
from slmq.embedding.routing.config import MODES, Policy, RouterConfig, Rule, read_config
from slmq.embedding.routing.decision import Decision
from slmq.embedding.routing.features import LOOKED_AT
from slmq.embedding.routing.heads import Labels, RouterHeads, load_heads, vector_of
from slmq.errors import ContextOverflowError, DataError

__all__ = ["Router", "last_question"]

Messages = str | Sequence[Mapping[str, Any]]
COUNTED = 20_000  # characters that are tokenized to count them; what is beyond is estimated
MESSAGE_TOKENS = 4  # around each message


class Router:
    """Chooses among models; it asks none of them. Safe to use from several threads.

    One pass of an encoder over the last message, and some linear heads: milliseconds on one core.

    Parameters
    ----------
    config : RouterConfig
    encoder : Encoder, optional
        None loads the one that the heads were trained on.

    Attributes
    ----------
    config : RouterConfig
    heads : RouterHeads
    encoder : Encoder

    Raises
    ------
    DataError
        If the configuration or the heads are wrong, or a model has neither a quality nor a head.
    Error
        As `slmq.load_encoder`.

    Examples
    --------
    >>> import slmq
    >>> with slmq.Router.open("router.toml") as router:  # doctest: +SKIP
    ...     print(router.route("What is the capital of France?").model)
    """

    def __init__(self, config: RouterConfig, encoder: Encoder | None = None) -> None:
        self.config = config
        self.heads: RouterHeads = load_heads(config.heads)
        for model in config.models:
            if model.quality is None and model.name not in self.heads.models:
                raise DataError(
                    f"model {model.name!r}: quality is missing: the share of questions that it "
                    f"answers right, 0..1, or train heads for it with `slmq route train`"
                )
        self._owned = encoder is None
        self.encoder = (
            load_encoder(config.encoder or self.heads.encoder) if encoder is None else encoder
        )
        try:
            self.heads.check(self.encoder)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str], encoder: Encoder | None = None) -> Router:
        """A router from its `router.toml`."""
        return cls(read_config(path), encoder)

    def __enter__(self) -> Router:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the encoder, if this has loaded it; harmless when repeated."""
        if self._owned:
            self.encoder.close()

    def __repr__(self) -> str:
        return f"<slmq.Router, {', '.join(model.name for model in self.config.models)}>"

    def route(
        self,
        messages: Messages,
        *,
        tools: bool = False,
        max_tokens: int | None = None,
        mode: str | None = None,
    ) -> Decision:
        """Choose a model for a request.

        Parameters
        ----------
        messages : str or sequence of mapping
            A question, or messages with "role" and "content".
        tools : bool
            Whether functions are offered.
        max_tokens : int, optional
            Most tokens of the answer.
        mode : str, optional
            In place of that of the policy.

        Raises
        ------
        ContextOverflowError
            If no model that may answer has room for it.
        TypeError, ValueError
            If messages or mode are wrong.
        """
        began_s = time.perf_counter()
        text, whole, count = _texts(messages)
        policy = self.config.policy
        chosen_mode = policy.mode if mode is None else mode
        if chosen_mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}; got {mode!r:.80}")
        tokens = self._tokens(whole) + count * MESSAGE_TOKENS
        answer = policy.answer_tokens if max_tokens is None else max_tokens
        labels = self.heads.labels(text, vector_of(self.encoder, text))
        rule = self._rule(text, labels, tokens, tools=tools)
        names = self._allowed(rule, tokens, max_tokens or 1)
        right = {
            name: self.heads.right(labels, name, self.config.model(name).quality) for name in names
        }
        costs = {name: self.config.model(name).cost(tokens, answer) for name in names}
        order, reason = _chosen(right, costs, policy, chosen_mode)
        return Decision(
            order[0],
            order,
            reason,
            labels,
            right,
            costs,
            tokens,
            answer,
            None if rule is None else rule.name,
            self.config.reference,
            policy.shadow,
            (time.perf_counter() - began_s) * 1e3,
        )

    def right(self, decision: Decision, name: str) -> float:
        """How likely any model of the configuration is right, for a request that was looked at."""
        return self.heads.right(decision.labels, name, self.config.model(name).quality)

    def _tokens(self, text: str) -> int:
        looked_at = text[:COUNTED]
        found = len(self.encoder.tokenizer.encode_parts(looked_at, add_special=False))
        return found * len(text) // max(len(looked_at), 1)

    def _rule(self, text: str, labels: Labels, tokens: int, *, tools: bool) -> Rule | None:
        """The first rule that fits."""
        for rule in self.config.rules:
            if (
                (rule.match is None or rule.match.search(text))
                and (not rule.languages or labels.language in rule.languages)
                and (not rule.domains or labels.domain in rule.domains)
                and (not rule.tasks or labels.task in rule.tasks)
                and (rule.min_tokens is None or tokens >= rule.min_tokens)
                and (rule.max_tokens is None or tokens <= rule.max_tokens)
                and (rule.tools is None or tools == rule.tools)
            ):
                return rule
        return None

    def _allowed(self, rule: Rule | None, tokens: int, answer: int) -> list[str]:
        """Models that the rule leaves and whose context is large enough."""
        config = self.config
        names = [m.name for m in config.models] if rule is None else config.named(rule.use)
        fitting = [
            name
            for name in names
            if (most := config.model(name).context) is None or tokens + answer <= most
        ]
        if not fitting:
            raise ContextOverflowError(
                f"the prompt has about {tokens} tokens, which with {answer} of an answer fit none "
                f"of {', '.join(names)}"
            )
        return fitting


def _chosen(
    right: Mapping[str, float], costs: Mapping[str, float], policy: Policy, mode: str
) -> tuple[list[str], str]:
    """The models in the order in which they are to be asked, and why."""
    likeliest = sorted(right, key=lambda name: (-right[name], costs[name]))
    if mode == "quality":
        return likeliest, "the likeliest to be right"
    if mode == "balanced":
        dearest = max(costs.values()) or 1.0
        value = {name: right[name] - policy.weight * costs[name] / dearest for name in right}
        order = sorted(right, key=lambda name: (-value[name], costs[name]))
        return order, f"right with {right[order[0]]:.0%}, less {policy.weight:g} times its cost"
    good = sorted(
        (name for name in right if right[name] >= policy.target),
        key=lambda name: (costs[name], -right[name]),
    )
    rest = [name for name in likeliest if name not in good]
    if good:
        return good + rest, f"the cheapest that is right with at least {policy.target:.0%}"
    return rest, f"none is right with {policy.target:.0%}: the likeliest"


def last_question(messages: Messages) -> str:
    """What a router looks at: the last message of the user."""
    return _texts(messages)[0]


def _texts(messages: Messages) -> tuple[str, str, int]:
    """The last message of the user, all that is said, and how many messages there are."""
    if isinstance(messages, str):
        return messages[:LOOKED_AT], messages, 1
    texts: list[tuple[str, str]] = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"messages[{i}]: expected a mapping, got {type(message).__name__}")
        texts.append((str(message.get("role")), _content(message.get("content"), i)))
    if not texts:
        raise ValueError("messages: expected at least one")
    asked = next((text for role, text in reversed(texts) if role == "user"), texts[-1][1])
    return asked, "\n".join(text for _, text in texts), len(texts)


def _content(content: Any, i: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "\n".join(part for part in parts if isinstance(part, str))
    raise TypeError(f"messages[{i}]: content: expected a str or a list, got {content!r:.80}")
