"""Model families: one file per Hugging Face model type, and the registry that finds it."""
