"""Checkpoint tensors to packed weights, and where they are placed in memory."""
