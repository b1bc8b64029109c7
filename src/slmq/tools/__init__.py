"""Tools that a model may call: their schemas, how each family writes a call, and what it reads."""
