"""Fills the store with the histories of a data set, behind the requests: none waits until all users are in.

A user who is asked for before that is put in first, alone, from the same file. That leaves the same state as when the
user's turn comes, so a request is answered now as it would be later. Only the search of users does not know who is not
in yet. Events and erasures need no history and do not wait for one: it comes to lie below the former, and does not come
back after the latter.

All processes of a service do this, and all services of a store. One of them puts the users in, the others wait for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Protocol

import structlog

from feature_store import OnlineStore, StoreUnavailableError

_PAUSE_S = 1.0
"""Before it is tried again with a store that did not answer."""

_log = structlog.get_logger(__name__)


class Histories(Protocol):
    """Users with the ids of their items, oldest first; a dictionary is one, and so is a bundle's file."""

    def __len__(self) -> int:
        """Users."""

    def items(self) -> Iterable[tuple[str, Sequence[str]]]:
        """All of them."""

    def get(self, user_id: str, /) -> Sequence[str] | None:
        """Those of one user; None: there is no such user."""


class Seeding:
    """The way of a data set's histories into a store. Thread-safe.

    Args:
        store: takes them; stop this before the store is closed.
        version: names the content of `histories`. Those of another version make room for them.
        histories: of the data set; further models of the service do not change them.
    """

    def __init__(self, store: OnlineStore, version: str, histories: Histories) -> None:
        self._store = store
        self._version = version
        self._histories = histories
        self._ends = threading.Event()
        self._all_in = threading.Event()
        self._share = 0.0
        self._asked: set[str] = set()
        """Users who are in since this attempt to put all in; each has a set of its own."""
        self._thread: threading.Thread | None = None

    @property
    def is_done(self) -> bool:
        """Whether all users are in."""
        return self._all_in.is_set()

    @property
    def share(self) -> float:
        """Of the users, how many are in, 0 to 1; some seconds old where another process puts them in."""
        return 1.0 if self.is_done else self._share

    def put(self, user_id: str) -> None:
        """Have the user's history in now, if it may not be yet.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        asked = self._asked  # of the attempt before the entries: the next one may begin meanwhile
        if not self.is_done and user_id not in asked:
            self._store.seeds.put_one(user_id, self._histories.get(user_id) or ())
            asked.add(user_id)

    def start(self) -> None:
        """Begin to put all users in, unless they are."""
        with suppress(StoreUnavailableError):
            if self._store.seeds.version() == self._version:
                self._all_in.set()
                return
            # A file of an earlier version has to be put in order before it can be asked for one user.
            self._histories.get("")
        self._thread = threading.Thread(target=self._run, name="seeding", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait until all users are in, or the time is up; whether they are."""
        return self._all_in.wait(seconds)

    def stop(self) -> None:
        """Stop where it is; the next start begins anew."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        failed = False
        while not self._ends.is_set():
            try:
                self._put_all()
            except StoreUnavailableError as error:
                if not failed:
                    _log.warning("histories wait for the store", error=str(error))
                failed = True
                self._ends.wait(_PAUSE_S)
            except Exception:  # as long as they are not in, each is put in when it is asked for
                _log.exception("histories do not come into the store")
                return
            else:
                return

    def _put_all(self) -> None:
        self._asked = set()  # another version may have come in since the last attempt
        count, began = len(self._histories), 0.0

        def begin() -> Iterable[tuple[str, Sequence[str]]]:
            nonlocal began
            began = time.monotonic()
            _log.info("histories come into the store; users who are asked for come first", users=count)
            yield from self._histories.items()

        has_put = self._store.seeds.put_all(
            self._version, begin(), num_users=count, ends=self._ends, on_progress=self._progress
        )
        if has_put:
            seconds = time.monotonic() - began
            _log.info(
                "histories are in the store",
                users=count,
                seconds=round(seconds, 1),
                users_per_second=round(count / max(seconds, 1e-9)),
            )
        if has_put or not self._ends.is_set():
            self._all_in.set()
            self._asked = set()

    def _progress(self, share: float) -> None:
        self._share = share
