"""Writes the offline store beside the API, in threads that no request waits for."""

from __future__ import annotations

import threading
from pathlib import Path

import structlog

from feature_store import OnlineStore, StoreUnavailableError
from feature_store.consumer import BackgroundConsumer
from serving.metrics import Metrics

_LOOK_S = 5.0
"""Between two looks at how far the offline store is behind."""

_log = structlog.get_logger(__name__)


class OfflineExport:
    """The offline consumer of a service. When it cannot go on, the log and the metrics say so, and the API answers on.

    Args:
        store: whose events; stop this before the store is closed.
        directory: of the offline store.
        look_s: seconds between two looks at the lag.
    """

    def __init__(self, store: OnlineStore, directory: Path, *, look_s: float = _LOOK_S) -> None:
        self._store = store
        self._directory = directory
        self._look_s = look_s
        self._consumer: BackgroundConsumer | None = None
        self._watcher: threading.Thread | None = None
        self._ends = threading.Event()

    @property
    def is_running(self) -> bool:
        """Whether events are written."""
        return self._consumer is not None and self._consumer.is_running

    def start(self, metrics: Metrics) -> None:
        """Begin to write; blocks for as long as the directory takes to open.

        Args:
            metrics: are told whether it runs, and how far it is behind.
        """
        metrics.watch_offline(lambda: self.is_running)
        try:
            self._consumer = BackgroundConsumer(self._store, self._directory)
        except Exception as error:  # whatever is wrong with the directory: the API is needed all the same
            _log.error("the offline store is not written", directory=str(self._directory), error=str(error))
            return
        self._watcher = threading.Thread(target=self._watch, args=(metrics,), name="offline-lag", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Write what is in the log, if the store answers, and end. Doing it again changes nothing."""
        self._ends.set()
        if self._watcher is not None:
            self._watcher.join()
        if self._consumer is not None:
            self._consumer.stop()

    def _watch(self, metrics: Metrics) -> None:
        assert self._consumer is not None
        while True:
            try:
                lag = self._consumer.lag()
            except StoreUnavailableError:
                metrics.set_offline_lag(None)
            else:
                metrics.set_offline_lag(lag)
            if self._ends.wait(self._look_s):
                return
