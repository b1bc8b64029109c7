"""Quantizing float checkpoints, and back."""

from slmq.quantizer.restore import dequantize
from slmq.quantizer.run import QuantizedFolder, TensorReport, quantize

__all__ = ["QuantizedFolder", "TensorReport", "dequantize", "quantize"]
