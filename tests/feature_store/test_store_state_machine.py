"""Any mix of posts, repeats, late events, data sets, erasures, consumers and crashes equals a plain Python model."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from feature_store import EmbeddedServer, Event, OnlineStore
from feature_store.consumer import OfflineConsumer
from feature_store.log import EventLog
from feature_store.offline import OfflineStore
from feature_store.offline_writer import OfflineWriter

CAPACITY = 5
users = st.sampled_from(["a", "b"])
items = st.sampled_from(["x", "y", "z"])


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.store = OnlineStore.embedded(self.directory, max_history=CAPACITY)
        self.ids: dict[tuple[str, str], str] = {}
        self.events: dict[str, list[tuple[float, int, str]]] = {}
        self.log: dict[str, list[tuple[str, str]]] = {}
        self.seeded: dict[str, list[str]] = {}
        self.version = 0
        self.arrivals = 0
        self.erased: set[str] = set()
        self.stored: list[tuple[str, str]] = []
        self.writer = OfflineWriter(self.directory / "offline")

    @rule(
        batch=st.lists(st.tuples(st.integers(0, 9), users, items, st.integers(0, 3)), min_size=1, max_size=4),
    )
    def append(self, batch: list[tuple[int, str, str, int]]) -> None:
        outcomes = self.store.append_events(
            [
                Event(event_id=str(number), user_id=user, item_id=item, event_type="view", timestamp=time)
                for number, user, item, time in batch
            ]
        )
        for (number, user, item, time), outcome in zip(batch, outcomes, strict=True):
            known = self.ids.get((user, str(number)))
            if known is None:
                assert outcome == "accepted"
                self.arrivals += 1
                self.ids[user, str(number)] = item
                self.log.setdefault(user, []).append((str(number), item))
                self.stored.append((user, str(number)))
                self.events.setdefault(user, []).append((time, self.arrivals, item))
                self._trim(user)
            else:
                assert outcome == ("duplicate" if known == item else "conflict")

    @rule(histories=st.dictionaries(users, st.lists(items, min_size=1, max_size=4)))
    def seed(self, histories: dict[str, list[str]]) -> None:
        self.version += 1
        assert self.store.seed_histories(str(self.version), histories.items())
        self.seeded = {user: items for user, items in histories.items() if user not in self.erased}
        for user in ("a", "b"):
            self._trim(user)

    @rule(user=users)
    def erase(self, user: str) -> None:
        was_known = bool(self.log.get(user) or self.seeded.get(user))
        assert self.store.erase_user(user) == was_known
        for kept in (self.events, self.log, self.seeded):
            kept.pop(user, None)
        self.ids = {key: item for key, item in self.ids.items() if key[0] != user}
        self.stored = [each for each in self.stored if each[0] != user]
        self.erased.add(user)

    @rule(member=st.sampled_from(["one", "two"]), is_killed=st.booleans())
    def consume(self, member: str, is_killed: bool) -> None:
        log = EventLog(self.store, member=member)
        if is_killed:
            log.join(self.writer.manifest.store_id)
            self.writer.write(log.read(2)[:3])
            self.writer.close()
            self.writer = OfflineWriter(self.directory / "offline")
            return
        OfflineConsumer(log, self.writer, batch=2).catch_up()
        events = OfflineStore(self.writer.directory).events().select("user_id", "event_id")
        assert sorted(events.iter_rows()) == sorted(self.stored)
        assert log.lag().entries == 0

    @precondition(lambda self: self.ids)
    @rule()
    def crash(self) -> None:
        os.kill(self.store.connection.client.info("server")["process_id"], signal.SIGKILL)

    @invariant()
    def histories_agree(self) -> None:
        for user in ("a", "b"):
            events = [item for _, _, item in sorted(self.events.get(user, []))]
            log = self.store.user_events(user, 100)
            assert [(event.event_id, event.item_id) for event in log] == self.log.get(user, [])
            assert self.store.user_history(user) == self.seeded.get(user, []) + events

    def _trim(self, user: str) -> None:
        """What a capped history has dropped does not come back."""
        self.events[user] = sorted(self.events.get(user, []))[-CAPACITY:]
        room = CAPACITY - len(self.events[user])
        self.seeded[user] = self.seeded.get(user, [])[-room:] if room else []

    def teardown(self) -> None:
        self.writer.close()
        self.store.close()
        EmbeddedServer(self.directory).stop()
        shutil.rmtree(self.directory)


StoreMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=12, deadline=None, derandomize=True)
test_any_sequence_of_operations = StoreMachine.TestCase
