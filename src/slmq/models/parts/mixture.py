"""Mixtures of experts: sizes from configurations, weights, and the steps of an MLP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import CheckpointError
from slmq.models.parts.gguf import Weights
from slmq.models.parts.values import config_count
from slmq.plan.experts import Experts
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.experts import Routing
    from slmq.plan.handle import Handle
    from slmq.plan.linear import Linear
    from slmq.plan.recorder import Recording

MOST_EXPERTS = 4096
EXPERT_NAMES = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
STACKS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@dataclass(frozen=True)
class Mixture:
    """Sizes of a mixture, checked.

    Attributes
    ----------
    experts : int
        Of a layer.
    top_k : int
        That a row goes to.
    inner : int
        Values in the middle of an expert.
    """

    experts: int
    top_k: int
    inner: int


def mixture_sizes(
    config: Mapping[str, Any], *, inner: str, experts: str = "num_experts"
) -> Mixture:
    """The mixture that a configuration speaks of; `inner`, `experts`: how it calls the sizes.

    Raises
    ------
    CheckpointError
        If a size is missing or makes no sense, or a row would go to more experts than there are.
    """
    # transformers 5 says num_local_experts of families whose files say num_experts.
    said = experts if config.get("num_local_experts") is None else "num_local_experts"
    count = config_count(config, said, high=MOST_EXPERTS)
    top_k = config_count(config, "num_experts_per_tok", high=MOST_EXPERTS)
    if top_k > count:
        raise CheckpointError(
            f"expected num_experts_per_tok of 1..{count}, as there are {count} experts "
            f"({said}), found {top_k}"
        )
    return Mixture(count, top_k, config_count(config, inner))


def load_experts(
    r: Reader,
    name: str,
    mixture: Mixture,
    hidden: int,
    parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Experts:
    """The experts of the module `name`; `parts`: what each calls its gate, up and down."""

    def linears(part: str, n: int, k: int) -> tuple[Linear, ...]:
        names = (f"{name}.{expert}.{part}.weight" for expert in range(mixture.experts))
        return tuple(r.linear(full, n, k) for full in names)

    gate, up, down = parts
    return Experts(
        linears(gate, mixture.inner, hidden),
        linears(up, mixture.inner, hidden),
        linears(down, hidden, mixture.inner),
    )


def load_router(
    r: Reader, name: str, mixture: Mixture, hidden: int, bias: str | None = None
) -> Linear:
    """The matrix that makes a logit for every expert; it is never rounded to integers."""
    return r.linear(f"{name}.weight", mixture.experts, hidden, bias=bias, floats=True)


def mixture_mlp(p: Recording, x: Handle, layer: Weights, eps: float, routing: Routing) -> Handle:
    """x + what its experts make of its norm."""
    h = p.rmsnorm(x, layer.mlp_norm, eps)
    routes = p.route(p.linear(h, layer.router), routing)
    return p.mixture(h, routes, layer.experts, "silu", add=x)


def mixture_from_gguf(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Any],
    architecture: str,
    decoder: Callable[[Mapping[str, Any], Mapping[str, Any], str], dict[str, Any]],
) -> dict[str, Any]:
    """GGUF metadata of a mixture as a Hugging Face configuration; `decoder` reads the rest of it.

    Raises
    ------
    CheckpointError
        If the stacks of experts are missing, or hold another number of them than is said.
    """
    a = architecture
    count = config_count(metadata, f"{a}.expert_count", high=MOST_EXPERTS)
    for name in tensors:
        block, _, rest = name.removeprefix("blk.").partition(".")
        if rest == "ffn_gate_inp.weight":
            check_stacks(tensors, int(block), count)
    # A dense model's check would refuse them.
    config = decoder({**metadata, f"{a}.expert_count": 0}, tensors, a)
    config["num_experts"] = count
    config["num_experts_per_tok"] = config_count(metadata, f"{a}.expert_used_count")
    key = f"{a}.expert_feed_forward_length"
    config["moe_intermediate_size"] = config_count(metadata, key, config["intermediate_size"])
    return config


def check_stacks(tensors: Mapping[str, Any], block: int, count: int) -> None:
    """Raise CheckpointError if a block's experts are not stacked as llama.cpp does it now."""
    for stack in STACKS:
        name = f"blk.{block}.{stack}.weight"
        if f"{name}[{count - 1}]" in tensors and f"{name}[{count}]" not in tensors:
            continue
        found = sum(tensor.startswith(f"{name}[") for tensor in tensors)
        if found > 0:
            raise CheckpointError(
                f"expected {count} experts in {name!r} (expert_count), found {found}"
            )
        others = sorted(tensor for tensor in tensors if tensor.startswith(f"blk.{block}.ffn_"))
        raise CheckpointError(
            f"expected the experts of block {block} as a stack {name!r}, found none; there are "
            f"{', '.join(others[:6])}. Files of 2023 hold each expert by itself: convert the "
            f"model again"
        )
