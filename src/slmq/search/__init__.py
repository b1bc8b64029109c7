"""Search in the texts of a folder, by meaning and by words, and answers with their sources."""
