"""Where the service stands between its start and its end, and whether it should get requests."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from feature_store import OnlineStore, StoreUnavailableError

Phase = Literal["starting", "serving", "draining"]
State = Literal["ok", "degraded", "unavailable"]

_PING_S = 1.0
"""A store that has not answered a ping by then is down."""


@dataclass(slots=True)
class Lifecycle:
    """The phase of one app; whoever starts and stops it moves it on."""

    phase: Phase = "starting"


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """Whether the service should get requests, and what was looked at."""

    state: State
    """`degraded`: it answers, though not everybody as well as it could."""
    checks: dict[str, str]
    """By name: `ok`, or what is wrong. Anybody may read it, so it names no addresses."""


def judge(*, phase: Phase, has_model: bool, store_answers: bool, has_fallback: bool) -> Readiness:
    """The readiness that follows from what was found.

    A store that is down is no reason to send requests elsewhere, as long as there are lists that need no store: it is
    down for the other processes too, and if all of them were taken out nobody would get anything.

    Args:
        phase: where the service stands.
        has_model: whether a model is loaded.
        store_answers: whether the store answers.
        has_fallback: whether there are lists without the store.
    """
    checks = {
        "phase": "ok" if phase == "serving" else phase,
        "model": "ok" if has_model else "no model is loaded",
        "store": "ok" if store_answers else "does not answer",
    }
    if phase != "serving" or not has_model or not (store_answers or has_fallback):
        return Readiness(state="unavailable", checks=checks)
    return Readiness(state="ok" if store_answers else "degraded", checks=checks)


class StoreProbe:
    """Asks the store whether it is there, one question at a time: a store that hangs costs one thread, however often
    somebody looks.

    Args:
        store: the store.
    """

    def __init__(self, store: OnlineStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-probe")
        self._question: Future[bool] | None = None

    async def answers(self) -> bool:
        """Whether the store answers within a second."""
        if self._question is None or self._question.done():
            self._question = self._thread.submit(self._ask)
        try:
            # Shielded: who waits no longer leaves the question to the others.
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._question)), _PING_S)
        except TimeoutError:
            return False

    def _ask(self) -> bool:
        try:
            self._store.ping()
        except StoreUnavailableError:
            return False
        return True
