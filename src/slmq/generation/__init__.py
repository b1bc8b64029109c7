"""Answers: a model, its scheduler, sampling and streams."""
