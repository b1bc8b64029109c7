"""Packed weights for PyTorch: any model, in 4 or 8 bits, on the CPU; they can be trained through.

>>> import slmq.torch  # doctest: +SKIP
>>> slmq.torch.quantize_(model, "int8")  # doctest: +SKIP

With transformers 5, `Config` makes it a quantizer of theirs: ``from_pretrained(...,
quantization_config=slmq.torch.Config("int4"))``. Nothing else in slmq imports PyTorch.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("torch") is None:
    raise ImportError("slmq.torch needs PyTorch: pip install 'slmq[torch]'")

from slmq.torch.linear import SlmqLinear
from slmq.torch.replacing import Replaced, dequantize_, quantize_

__all__ = ["Config", "Replaced", "SlmqLinear", "dequantize_", "quantize_"]

try:
    from slmq.torch.hook import Config
except ImportError:  # no transformers, or one before 5: the rest works without

    class Config:  # type: ignore[no-redef]
        """Says what is needed."""

        def __init__(self, *_args: object, **_options: object) -> None:
            raise ImportError("slmq.torch.Config needs transformers 5: pip install transformers")
