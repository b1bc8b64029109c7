"""A model's linear layers, replaced by packed ones and back, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slmq.formats import format_named
from slmq.torch.linear import SlmqLinear, packed_weight

__all__ = ["Replaced", "dequantize_", "obstacle", "packed_layer", "put", "quantize_"]

SKIP = ("lm_head",)


@dataclass(frozen=True)
class Replaced:
    """What `quantize_` did.

    Attributes
    ----------
    layers : list of str
        The layers that are packed now.
    skipped : dict of str to str
        Weights with two or more dimensions that stay as they are, each with the reason.
    bytes_before, bytes_after : int
        Parameters and buffers of the model.
    """

    layers: list[str]
    skipped: dict[str, str]
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        """For people: what was packed, and what was not."""
        lines = [
            f"{len(self.layers)} layers packed, {self.bytes_before / 1e6:.1f} MB before, "
            f"{self.bytes_after / 1e6:.1f} MB after",
            *(f"left as it is: {name} ({reason})" for name, reason in self.skipped.items()),
        ]
        return "\n".join(lines)


def quantize_(model: Any, format: str = "int8", *, skip: Sequence[str] = SKIP) -> Replaced:
    """Pack the linear layers of a model in place, one by one, freeing the floats of each.

    `torch.nn.Linear` and GPT-2's `Conv1D` become `SlmqLinear`. What is left as it is (embeddings,
    convolutions, weights that several layers share, experts that are stored as one) is named in the
    result.

    Parameters
    ----------
    model : torch.nn.Module
        It may be on the meta device: layers are then made for a state that is loaded later.
    format : str
        "int4", "int8", or a stored format.
    skip : sequence of str
        Layers to leave, by the ends of their names.

    Raises
    ------
    TypeError, ValueError
        If `model` is no module, is itself a linear layer, or there is no such format, or a weight
        holds NaN or infinity. Layers before it are packed then.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if obstacle(model) is None:
        raise ValueError("model: expected a module with linear layers in it, got a linear layer")
    format_named(format)
    before = _bytes_of(model)
    layers, skipped = [], {}
    owners = _owners(model)
    for name, module in list(model.named_modules()):
        for own in ("weight", *_other_matrices(module)):
            values = module._parameters.get(own)
            if values is None or values.dim() < 2:
                continue
            full = f"{name}.{own}".lstrip(".")
            reason = _why_not(name, module, own, owners[id(values)], skip)
            if reason is not None:
                skipped[full] = reason
                continue
            try:
                made = packed_layer(module, format)
            except ValueError as error:
                raise ValueError(f"{full}: {error}") from None
            put(model, name, made)
            layers.append(name)
        del module
    return Replaced(layers, skipped, before, _bytes_of(model))


def dequantize_(model: Any) -> list[str]:
    """Turn packed layers of a model into ordinary ones in place; returns their names."""
    layers = []
    for name, module in list(model.named_modules()):
        if isinstance(module, SlmqLinear):
            made = torch.nn.Linear(1, 1, bias=False)
            made.in_features, made.out_features = module.in_features, module.out_features
            made.weight = torch.nn.Parameter(module.weight.as_subclass(torch.Tensor))
            made.bias = module.bias
            put(model, name, made.train(module.training))
            layers.append(name)
    return layers


def obstacle(module: Any) -> str | None:
    """Why a module cannot be packed by its kind; None if it can."""
    if type(module) is torch.nn.Linear or _is_conv1d(module):
        if getattr(module, "parametrizations", None):
            return "its weight is computed by a parametrization"
        if module._forward_hooks or module._forward_pre_hooks:
            return "it has hooks"
        return None
    if isinstance(module, SlmqLinear):
        return "it is packed already"
    return f"{type(module).__name__} is no linear layer"


def packed_layer(module: Any, format: str) -> SlmqLinear:
    """A packed layer in the place of a linear one; it has the same bias."""
    weight = module._parameters["weight"]
    turned = weight.t() if _is_conv1d(module) else weight
    n, k = turned.shape
    made = SlmqLinear(k, n, False, format=format, device="meta", dtype=weight.dtype)
    made.register_parameter("bias", module.bias)
    made.train(module.training)
    if not weight.is_meta:
        if weight.device.type != "cpu":
            raise ValueError(f"expected a weight on the CPU, got one on {weight.device}")
        made.qweight = packed_weight(turned, format)
    return made


def put(model: Any, name: str, module: Any) -> None:
    """Put a module at a place in a model."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def _why_not(
    name: str, module: Any, own: str, owners: list[str], skip: Sequence[str]
) -> str | None:
    if own != "weight":
        return f"{type(module).__name__} multiplies with it in its own way"
    if (reason := obstacle(module)) is not None:
        return reason
    if any(name == end or name.endswith(f".{end}") for end in skip):
        return "skipped by its name"
    others = [other for other in owners if other != f"{name}.{own}"]
    return f"shared with {others[0]}" if others else None


def _is_conv1d(module: Any) -> bool:
    """Whether this is the layer of GPT-2 in transformers, whose weight lies the other way round."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _other_matrices(module: Any) -> Iterator[str]:
    return (own for own in module._parameters if own != "weight")


def _owners(model: Any) -> dict[int, list[str]]:
    """Under which names each parameter is found."""
    found: dict[int, list[str]] = {}
    for name, values in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(values), []).append(name)
    return found


def _bytes_of(model: Any) -> int:
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
