"""Quantizing float checkpoints."""

from slmq.quantizer.reports import QuantizedFolder, TensorReport
from slmq.quantizer.run import quantize

__all__ = ["QuantizedFolder", "TensorReport", "quantize"]
