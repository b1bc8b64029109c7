"""Quantizing float checkpoints, and back."""

from slmq.quantizer.reports import QuantizedFolder, TensorReport
from slmq.quantizer.restore import dequantize
from slmq.quantizer.run import quantize

__all__ = ["QuantizedFolder", "TensorReport", "dequantize", "quantize"]
