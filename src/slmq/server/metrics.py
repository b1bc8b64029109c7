"""Counts for Prometheus, under the names that dashboards for vLLM and llama.cpp know."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmq.generation.stats import Stats
    from slmq.server.service import Service
    from slmq.server.talk import Talk

__all__ = ["Histogram", "Metrics"]

FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SPENT = ("prompt", "decode", "mask", "cpu")
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass
class Histogram:
    """How often a time was within which bound."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, label: str) -> list[str]:
        """In the format of Prometheus."""
        found, below = [f"# TYPE {name} histogram"], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            below += count
            found.append(f'{name}_bucket{{{label},le="{bound}"}} {below}')
        return [*found, f"{name}_sum{{{label}}} {self.total}", f"{name}_count{{{label}}} {below}"]


@dataclass
class _Times:
    first: Histogram = field(default_factory=lambda: Histogram(FIRST_S))
    queue: Histogram = field(default_factory=lambda: Histogram(FIRST_S))
    token: Histogram = field(default_factory=lambda: Histogram(TOKEN_S))
    spent_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPENT, 0.0))


class Metrics:
    """What was measured of answers, by model."""

    def __init__(self) -> None:
        self._times: dict[str, _Times] = {}

    def count(self, talk: Talk) -> None:
        """Count the answers of a request that is over."""
        times = self._times.setdefault(talk.book.name, _Times())
        for result in talk.results:
            if result is None:
                continue
            times.first.add(result.time_to_first_token)
            times.queue.add(result.queue_s)
            if result.generation_tps > 0:
                times.token.add(1.0 / result.generation_tps)

    def spend(self, talk: Talk) -> None:
        """Add up what a request has cost that is at rest."""
        spent_s = self._times.setdefault(talk.book.name, _Times()).spent_s
        for source in talk.sources:
            for name in SPENT:
                spent_s[name] += getattr(source.ledger, f"{name}_s")

    def text(self, service: Service) -> str:
        """All of it, in the format of Prometheus."""
        lines = [
            "# TYPE slmq:requests_shared_total counter",
            f"slmq:requests_shared_total {service.twins.joined}",
            "# TYPE slmq:log_lines_lost_total counter",
            f"slmq:log_lines_lost_total {service.log.lost}",
        ]
        for book in service.shelf.books:
            label = f'model_name="{book.name}"'
            up = book.loaded is not None
            lines += ["# TYPE slmq:model_loaded gauge", f"slmq:model_loaded{{{label}}} {int(up)}"]
            if book.loaded is None:
                continue
            if book.base is None:  # an adapter's are in those of its model
                lines += _of_stats(book.loaded.model.stats(), label)
            times = self._times.get(book.name, _Times())
            lines += times.first.lines("vllm:time_to_first_token_seconds", label)
            lines += times.queue.lines("vllm:request_queue_time_seconds", label)
            lines += times.token.lines("vllm:inter_token_latency_seconds", label)
            for name, seconds in times.spent_s.items():
                metric = f"slmq:request_{name}_seconds_total"
                lines += [f"# TYPE {metric} counter", f"{metric}{{{label}}} {seconds}"]
        return "\n".join(_once(lines)) + "\n"


def _of_stats(stats: Stats, label: str) -> list[str]:
    usage = stats.pages_in_use / max(stats.pages_limit, 1)
    gauges = {
        "vllm:num_requests_running": stats.running,
        "vllm:num_requests_waiting": stats.waiting,
        "vllm:kv_cache_usage_perc": usage,
        "llamacpp:requests_processing": stats.running,
        "llamacpp:requests_deferred": stats.waiting,
        "llamacpp:kv_cache_usage_ratio": usage,
        "slmq:kv_pages_in_use": stats.pages_in_use,
        "slmq:kv_pages_kept": stats.pages_kept,
        "slmq:kv_pages_limit": stats.pages_limit,
        "slmq:kv_bytes": stats.cache_bytes,
        "slmq:step_ms_p50": stats.step_ms_p50,
        "slmq:step_ms_p99": stats.step_ms_p99,
    }
    counters = {
        "vllm:prompt_tokens_total": stats.prompt_tokens,
        "vllm:generation_tokens_total": stats.generated_tokens,
        "vllm:num_preemptions_total": stats.preemptions,
        "vllm:prefix_cache_queries_total": stats.prompt_tokens,
        "vllm:prefix_cache_hits_total": stats.cached_tokens,
        "vllm:spec_decode_num_draft_tokens_total": stats.drafted_tokens,
        "vllm:spec_decode_num_accepted_tokens_total": stats.accepted_tokens,
        "llamacpp:prompt_tokens_total": stats.prompt_tokens,
        "llamacpp:tokens_predicted_total": stats.generated_tokens,
        "slmq:requests_submitted_total": stats.submitted,
        "slmq:requests_finished_total": stats.finished,
        "slmq:requests_cancelled_total": stats.cancelled,
        "slmq:requests_failed_total": stats.failed,
        "slmq:steps_total": stats.runs,
        "slmq:engine_seconds_total": stats.busy_s,
        "slmq:step_rows_total": stats.rows,
    }
    lines = []
    for kind, values in (("gauge", gauges), ("counter", counters)):
        for name, value in values.items():
            lines += [f"# TYPE {name} {kind}", f"{name}{{{label}}} {value}"]
    return lines


def _once(lines: list[str]) -> list[str]:
    """The lines of every metric together, and its type once, as the format wants it."""
    groups: dict[str, list[str]] = {}
    head = ""
    for text in lines:
        if text.startswith("# TYPE "):
            head = text
            groups.setdefault(head, [])
        else:
            groups[head].append(text)
    return [text for head, found in groups.items() for text in (head, *found)]
