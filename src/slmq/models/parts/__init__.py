"""Parts that families share; none of them asks which family it serves."""
