"""Any mix of posts, repeats, late events, new data sets and crashes equals a plain Python model."""

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
                self.ids[user, str(number)] = item
                self.log.setdefault(user, []).append((str(number), item))
                self.events.setdefault(user, []).append((time, len(self.ids), item))
                self._trim(user)
            else:
                assert outcome == ("duplicate" if known == item else "conflict")

    @rule(histories=st.dictionaries(users, st.lists(items, min_size=1, max_size=4)))
    def seed(self, histories: dict[str, list[str]]) -> None:
        self.version += 1
        assert self.store.seed_histories(str(self.version), histories.items())
        self.seeded = dict(histories)
        for user in ("a", "b"):
            self._trim(user)

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
        self.store.close()
        EmbeddedServer(self.directory).stop()
        shutil.rmtree(self.directory)


StoreMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=12, deadline=None, derandomize=True)
test_any_sequence_of_operations = StoreMachine.TestCase
