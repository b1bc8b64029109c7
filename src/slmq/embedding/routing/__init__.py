"""Which of several models answers: the cheapest that is likely to be right."""
