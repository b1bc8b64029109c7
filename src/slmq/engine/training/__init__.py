"""Training: texts, gradients, the run, and what it leaves on the disk."""
