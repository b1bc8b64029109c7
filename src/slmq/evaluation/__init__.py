"""Measuring answers: perplexity, divergence from a reference, and tasks with right answers.

What each number means, and where it comes from, stands in docs/quality.md.
"""

from slmq.evaluation.divergence import Comparison, compare
from slmq.evaluation.harness import Evaluation, Sample, evaluate
from slmq.evaluation.metrics import Metric
from slmq.evaluation.tasks import Prompt, prepare
from slmq.evaluation.text_perplexity import PerplexityResult, perplexity
from slmq.evaluation.windows import read_text

__all__ = [
    "Comparison",
    "Evaluation",
    "Metric",
    "PerplexityResult",
    "Prompt",
    "Sample",
    "compare",
    "evaluate",
    "perplexity",
    "prepare",
    "read_text",
]
