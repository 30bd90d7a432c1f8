"""Puts the lists that were shown into the event log, behind the requests: none waits for it, and none fails by it."""

from __future__ import annotations

import threading
from collections import deque

import structlog

from feature_store import OnlineStore, StoreError
from feature_store.slates import ServedSlate
from serving.metrics import Metrics

_CAPACITY = 10_000
"""Lists that wait, about a kilobyte each; further ones are dropped."""
_BATCH = 500

_log = structlog.get_logger(__name__)


class SlateWriter:
    """A bounded queue with a thread that empties it.

    Args:
        store: whose log it is; stop this before the store is closed.
        capacity: lists that wait at a time.
    """

    def __init__(self, store: OnlineStore, *, capacity: int = _CAPACITY) -> None:
        self._store = store
        self._capacity = capacity
        self._waiting: deque[ServedSlate] = deque()
        self._changed = threading.Condition()
        self._has_ended = False
        self._thread: threading.Thread | None = None

    def start(self, metrics: Metrics) -> None:
        """Begin to write.

        Args:
            metrics: are told what becomes of each list.
        """
        self._thread = threading.Thread(target=self._run, args=(metrics,), name="slate-writer", daemon=True)
        self._thread.start()

    def put(self, slate: ServedSlate, metrics: Metrics) -> None:
        """Have a list of a known user written; drops it where too many wait. Returns at once.

        Args:
            slate: the list.
            metrics: are told when it is dropped.
        """
        with self._changed:
            has_room = len(self._waiting) < self._capacity and not self._has_ended
            if has_room:
                self._waiting.append(slate)
                self._changed.notify()
        if not has_room:
            metrics.count_slates("dropped", 1)

    def stop(self) -> None:
        """Write what waits, if the store answers, and end. Doing it again changes nothing."""
        with self._changed:
            self._has_ended = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self, metrics: Metrics) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._has_ended)
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            if not batch:
                return
            try:
                logged = self._store.log_slates(batch)
            except StoreError as error:
                _log.warning("lists that were shown are not in the log", lists=len(batch), error=str(error))
                metrics.count_slates("failed", len(batch))
                with self._changed:
                    if self._has_ended:  # nobody waits for a store that is down
                        metrics.count_slates("failed", len(self._waiting))
                        return
            else:
                metrics.count_slates("logged", logged)
                metrics.count_slates("left_out", len(batch) - logged)
