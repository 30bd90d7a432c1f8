"""Fills an offline store from the event log, and goes on after crashes of either side.

Each round takes entries, writes them durably (`OfflineWriter`), acknowledges them and trims the log. After a start and
after every error it first takes again what was given out and never acknowledged, and whenever a lag remains; the writer
knows what is in already.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from feature_store.errors import StoreError, StoreUnavailableError
from feature_store.log import EventLog, Lag
from feature_store.offline_writer import OfflineWriter
from feature_store.online import OnlineStore

_BATCH = 2000
"""Entries taken at once from each shard; also the rows that a crash makes us write again."""
_INTERVAL_S = 1.0
_LONGEST_PAUSE_S = 30.0
_HOUSEKEEPING_S = 3600.0

_log = logging.getLogger(__name__)


class OfflineConsumer:
    """Fills the store of `writer` from `log`. For one thread.

    Args:
        log: where events come from.
        writer: where they go.
        batch: entries taken at once from each shard.
    """

    def __init__(self, log: EventLog, writer: OfflineWriter, *, batch: int = _BATCH) -> None:
        self._log = log
        self._writer = writer
        self._batch = batch
        self._is_joined = False

    def catch_up(self) -> int:
        """Write all that is in the log; how many events were new.

        Raises:
            StoreUnavailableError: the store or the disk fails; what is written stays written, call it again.
            StoreConfigError: the group's events go to another directory.
        """
        written = 0
        try:
            if not self._is_joined:
                self._log.join(self._writer.manifest.store_id)
                written += self._take_again()
                self._is_joined = True
            while entries := self._log.read(self._batch):
                written += self._writer.write(entries)
                self._log.acknowledge(entries)
                self._log.trim()
            if self._log.lag().entries:
                # Given out, perhaps, to a connection that was lost and replaced without an error here.
                written += self._take_again()
                self._log.trim()
        except BaseException:
            # Entries may have been given out without coming here: they are claimed before newer ones are read.
            self._is_joined = False
            raise
        return written

    def _take_again(self) -> int:
        """Write what was given out and never acknowledged; how many events were new."""
        written = 0
        for entries in self._log.claim(self._batch):
            written += self._writer.write(entries)
            self._log.acknowledge(entries)
        return written

    def run(self, stop: threading.Event, interval_s: float = _INTERVAL_S) -> None:
        """Write what comes until `stop` is set; while the store or the disk fails, try again at growing intervals.

        Raises:
            StoreConfigError: the group's events go to another directory.
        """
        pause, next_housekeeping = interval_s, time.monotonic()
        while True:
            try:
                self.catch_up()
                if time.monotonic() >= next_housekeeping:
                    self._log.trim()
                    self._log.store.drop_idle_users()
                    next_housekeeping = time.monotonic() + _HOUSEKEEPING_S
                pause = interval_s
            except StoreUnavailableError as error:
                pause = min(_LONGEST_PAUSE_S, 2 * pause)
                _log.warning("the offline store is not up to date, trying again in %.0f s: %s", pause, error)
            if stop.wait(pause):
                return


class BackgroundConsumer:
    """An `OfflineConsumer` in a thread of its own, for a service that has no process to spare for it.

    Args:
        store: whose events; it must outlive this.
        directory: of the offline store.
        group: consumer group of the log; every offline store needs its own.
        on_failure: told why the thread has ended by itself, for instance because the keys are of another version.

    Raises:
        StoreConfigError: the directory cannot be written, or another consumer writes to it.
    """

    def __init__(
        self,
        store: OnlineStore,
        directory: Path,
        *,
        group: str = "offline",
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self._writer = OfflineWriter(directory)
        self._event_log = EventLog(store, group=group)
        self._on_failure = on_failure
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="offline-consumer", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether events are still written."""
        return self._thread.is_alive()

    def lag(self) -> Lag:
        """How far the offline store is behind.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        return self._event_log.lag()

    def stop(self) -> None:
        """Write what is in the log, if the store answers, and end."""
        self._stop.set()
        self._thread.join()
        self._writer.close()

    def _run(self) -> None:
        consumer = OfflineConsumer(self._event_log, self._writer)
        try:
            consumer.run(self._stop)
            consumer.catch_up()
        except StoreUnavailableError as error:
            _log.warning("the offline store is not up to date: %s", error)
        except StoreError as error:
            _log.error("the offline store is not written any more: %s", error)
            if self._on_failure is not None:
                self._on_failure(error)
