"""Folders of packed weights: written from a checkpoint, and back to floats."""
