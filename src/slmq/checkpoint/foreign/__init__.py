"""Weights that others quantized: GGUF blocks, GPTQ, AWQ, compressed-tensors."""
