"""How near a passage has to be to a question: nearer than to questions that it does not answer.

Cosines of one encoder lie between 0 and 0.9, of another between 0.7 and 0.95, so there is no number
that suits all. These questions are about all the world; few documents answer more than a few.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["UNRELATED", "needed_fit"]

UNRELATED = (
    "Who painted the ceiling of the chapel?",
    "How long does it take to boil an egg?",
    "What is the capital of Mongolia?",
    "Which team won the cup in 1986?",
    "How do I remove a wine stain from a carpet?",
    "What year did the war end?",
    "Can dogs eat chocolate?",
    "How tall is the highest mountain in Africa?",
    "What are the symptoms of the flu?",
    "Who wrote this symphony?",
    "When should tomatoes be planted?",
    "How many bones does a human hand have?",
    "What is the exchange rate of the yen?",
    "Why do leaves turn red in autumn?",
    "How is cheese made?",
    "Which river flows through the city?",
    "What does the heart do?",
    "How do I tie a bow tie?",
    "Who was the first king of the country?",
    "What is a good name for a cat?",
    "How far away is the moon?",
    "When does the train to the airport leave?",
    "What is the best exercise for back pain?",
    "How do bees find their way home?",
)
CERTAIN = 3.0  # as many times the usual spread above the usual


def needed_fit(best: npt.NDArray[np.float32]) -> float:
    """The cosine that is needed, given the nearest passages of those questions.

    Never more than half way from there to the cosine of equal texts.
    """
    middle = float(np.median(best))
    spread = float(np.median(np.abs(best - middle)))
    return min(middle + CERTAIN * 1.4826 * spread, (middle + 1) / 2)
