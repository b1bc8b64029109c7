"""Encoders: vectors of texts, scores of pairs, labels of texts and tokens."""
