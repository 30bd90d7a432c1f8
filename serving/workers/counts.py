"""What the supervisor counts, in Prometheus' terms."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest


class ProcessMetrics:
    """Metrics of the processes of a service.

    Args:
        num_up: how many workers answer now.
    """

    def __init__(self, num_up: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        alive = Gauge("recsys_workers", "Worker processes that answer.", registry=self.registry)
        alive.set_function(num_up)
        self._restarts = Counter(
            "recsys_process_restarts",
            "Processes that died and were replaced: numbered workers, and the one that writes the offline store.",
            ("process",),
            registry=self.registry,
        )

    def count_restart(self, process: str) -> None:
        """A process has died."""
        self._restarts.labels(process).inc()

    def render(self) -> str:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry).decode()
