"""Counts for /metrics, in the form Prometheus reads."""

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from indexmem_cli.server.worker import Worker


class Metrics:
    """What one server has done since it started."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, worker: Worker) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "indexmem_requests", "Requests answered.", ("path", "status"), registry=registry
        )
        self._seconds = Histogram(
            "indexmem_request_seconds",
            "Time until a request was answered, or its stream began.",
            ("path",),
            buckets=(0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900),
            registry=registry,
        )
        self._tokens = Counter(
            "indexmem_tokens", "Tokens by what became of them.", ("kind",), registry=registry
        )
        waiting = Gauge("indexmem_waiting_requests", "Requests in the queue.", registry=registry)
        waiting.set_function(lambda: worker.waiting)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_tokens(self, usage: dict[str, Any]) -> None:
        """Count the tokens of one answer."""
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self._tokens.labels("read").inc(usage["prompt_tokens"] - cached)
        self._tokens.labels("cached").inc(cached)
        self._tokens.labels("answered").inc(usage["completion_tokens"])

    def text(self) -> bytes:
        """All counts as text."""
        return generate_latest(self._registry)
