"""The claim: the processes of a service give way to those of another version one by one, and nobody notices: no request
fails, no event is lost, and every list is of one of the two versions.

Three `recsys serve` share a store. Connections reach them through a balancer that looks at no bytes, as a Kubernetes
service does: a new one goes to the next process whose `/readyz` says 200, and stays there. Clients keep theirs and make
no second attempt. Lists and events are asked for at a constant rate, whatever becomes of those before. Meanwhile each
process gets SIGTERM, drains and ends, and one with the other bundle starts in its place.

    recsys bench rolling --bundle runs/OLD/bundle --next runs/NEW/bundle [--rate 40] [--workers 1] [--json]

The bundles must be of runs of one name, whose users they share.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from feature_store import EmbeddedServer, OnlineStore
from recsys.bundle import read_manifest
from serving.bundles import namespace_of
from training.served import Served, served_bundle

_LOOK_S = 0.1
"""Between two looks of the balancer at each process."""
_HEADERS = {"X-Deadline-Ms": "20000"}
"""A process that starts takes the processors from the others: what counts here is whether answers come."""


def main(arguments: list[str]) -> dict[str, Any]:
    """`failed` are requests by what became of them; `lost` are events that were acknowledged and are not in the store;
    milliseconds are of lists, before the first process is replaced and from then on."""
    parser = argparse.ArgumentParser(prog="recsys bench rolling", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="what is served first")
    parser.add_argument("--next", type=Path, required=True, help="what is served at the end")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="of each process")
    parser.add_argument("--rate", type=float, default=40, help="requests a second; every second one is an event")
    parser.add_argument("--seconds", type=float, default=3, help="before the first process is replaced, and at the end")
    parser.add_argument("--drain", type=float, default=3, help="seconds that a process answers on after SIGTERM")
    parser.add_argument("--store", help="URL of a store; default: one of its own")
    options = parser.parse_args(arguments)
    old, new = (read_manifest(bundle) for bundle in (options.bundle, options.next))
    if old.name != new.name or old.model_version == new.model_version:
        parser.error("--next: name a bundle of another version and the same run's name, whose users they share")
    with tempfile.TemporaryDirectory(prefix="recsys-rolling-") as home, ExitStack() as ends:
        url = options.store
        if url is None:
            server = EmbeddedServer(Path(home) / "store")
            ends.callback(server.stop)
            server.ensure_running()
            url = f"unix://{server.socket_path}"
        return asyncio.run(_roll(options, old.model_version, new.model_version, url))


async def _roll(options: argparse.Namespace, old: str, new: str, url: str) -> dict[str, Any]:
    bundles = options.bundle.resolve(), options.next.resolve()
    balancer = _Balancer()
    load = _Load(_users_with_items(bundles[0]), options.rate, keep_alive_s=options.drain / 2)
    async with AsyncExitStack() as ends:
        places = [_Place(options, url) for _ in range(options.processes)]
        ends.push_async_callback(_end_all, places)
        started = await asyncio.gather(*(asyncio.to_thread(place.start, bundles[0]) for place in places))
        address = await balancer.start([served.url for served in started])
        ends.push_async_callback(balancer.close)
        asking = asyncio.create_task(load.run(address))
        await asyncio.sleep(options.seconds)
        begun = time.perf_counter()
        for place, served in zip(places, started, strict=True):
            await asyncio.to_thread(place.end)
            balancer.leave(served.url)
            await balancer.join((await asyncio.to_thread(place.start, bundles[1])).url)
        ended = time.perf_counter()
        await asyncio.sleep(options.seconds)
        load.stop()
        await asking
        at_the_end = await asyncio.gather(*(_version(address) for _ in range(4 * options.processes)))
    stored = await asyncio.to_thread(_stored, url, namespace_of(bundles[0]), load.acknowledged)
    versions = Counter(version for _, version, _ in load.lists)
    return {
        "requests": load.asked,
        "failed": dict(load.failed),
        "events": len(load.acknowledged),
        "lost": len(load.acknowledged - stored),
        "lists_of_old": versions.pop(old, 0),
        "lists_of_new": versions.pop(new, 0),
        "lists_of_others": sum(versions.values()),
        "all_new_at_the_end": set(at_the_end) == {new},
        "fallbacks": load.fallbacks,
        "seconds_to_replace_all": round(ended - begun, 1),
        "before": _quantiles(ms for at, _, ms in load.lists if at <= begun),
        "meanwhile": _quantiles(ms for at, _, ms in load.lists if begun < at <= ended),
        "settings": {
            "processes": options.processes,
            "workers": options.workers,
            "rate": options.rate,
            "drain_s": options.drain,
        },
    }


def _users_with_items(bundle: Path) -> list[tuple[str, str]]:
    """Users of a bundle, each with an item."""
    import polars as pl

    known = pl.read_parquet(bundle / "histories.parquet").head(1000)
    return [(user, items[-1]) for user, items in known.select("user_id", "item_ids").iter_rows()]


async def _version(address: str) -> str:
    """Of the model behind a connection of its own."""
    async with httpx.AsyncClient(base_url=address, timeout=30) as http:
        return str((await http.get("/v1/model")).raise_for_status().json()["model_version"])


def _stored(url: str, namespace: str, acknowledged: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The users' events that the store has, by user and id."""
    store = OnlineStore.connect(url, namespace=namespace)
    users = {user for user, _ in acknowledged}
    found = {(user, event.event_id) for user in users for event in store.user_events(user, 10_000)}
    store.close()
    return found


def _quantiles(milliseconds: Iterable[float]) -> dict[str, float]:
    found = np.percentile(list(milliseconds), [50, 99])
    return {"p50_ms": round(float(found[0]), 1), "p99_ms": round(float(found[1]), 1)}


class _Place:
    """Where one process after the other answers."""

    def __init__(self, options: argparse.Namespace, store: str) -> None:
        self._options = options
        self._store = store
        self._ends = ExitStack()

    def start(self, bundle: Path) -> Served:
        """A process that answers."""
        return self._ends.enter_context(
            served_bundle(
                bundle,
                workers=self._options.workers,
                settings=f"guard: {{drain_s: {self._options.drain}}}",
                store=self._store,
            )
        )

    def end(self) -> None:
        """Tell it to end, and wait until it has."""
        self._ends.close()


async def _end_all(places: list[_Place]) -> None:
    await asyncio.gather(*(asyncio.to_thread(place.end) for place in places))


class _Balancer:
    """Passes connections on to processes that are ready, in turns."""

    def __init__(self) -> None:
        self._is_ready: dict[str, bool] = {}
        self._turns = 0

    async def start(self, urls: list[str]) -> str:
        """Where it listens, once all are ready."""
        self._http = httpx.AsyncClient(timeout=5)
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self._looking = asyncio.create_task(self._look())
        for url in urls:
            await self.join(url)
        host, port = self._server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    async def join(self, url: str) -> None:
        """Look at this one too, until it is ready."""
        self._is_ready[url] = False
        while not self._is_ready[url]:
            await asyncio.sleep(_LOOK_S)

    def leave(self, url: str) -> None:
        """Look at this one no more."""
        del self._is_ready[url]

    async def close(self) -> None:
        self._looking.cancel()
        self._server.close()
        await self._http.aclose()

    async def _look(self) -> None:
        while True:
            for url in list(self._is_ready):
                try:
                    ready = (await self._http.get(f"{url}/readyz")).status_code == 200
                except httpx.TransportError:
                    ready = False
                if url in self._is_ready:
                    self._is_ready[url] = ready
            await asyncio.sleep(_LOOK_S)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready = [url for url, is_ready in self._is_ready.items() if is_ready]
        self._turns += 1
        try:
            port = int(ready[self._turns % len(ready)].rpartition(":")[2])
            its_reader, its_writer = await asyncio.open_connection("127.0.0.1", port)
        except (OSError, ZeroDivisionError):  # nobody there: the client sees a connection that ends
            writer.close()
            return
        await asyncio.gather(_pass_on(reader, its_writer), _pass_on(its_reader, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@dataclass
class _Load:
    """Lists and events in turns at a constant rate."""

    users: list[tuple[str, str]]
    rate: float
    keep_alive_s: float
    asked: int = 0
    fallbacks: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    lists: list[tuple[float, str, float]] = field(default_factory=list)
    """When it was asked for, the model's version, milliseconds from when it was due."""
    acknowledged: set[tuple[str, str]] = field(default_factory=set)
    """User and id of events."""
    _goes_on: bool = True

    def stop(self) -> None:
        """Ask no more."""
        self._goes_on = False

    async def run(self, address: str) -> None:
        """Ask until `stop`, and wait for the answers."""
        started = time.perf_counter()
        # A connection on which nothing is asked is dropped before a process ends that drains: one that the process
        # closes may lose a request which is on its way.
        limits = httpx.Limits(max_keepalive_connections=100, keepalive_expiry=self.keep_alive_s)
        async with (
            httpx.AsyncClient(base_url=address, headers=_HEADERS, limits=limits, timeout=30) as http,
            asyncio.TaskGroup() as tasks,
        ):
            for user, item in cycle(self.users):
                if not self._goes_on:
                    break
                due = started + self.asked / self.rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.create_task(self._ask(http, due, self.asked, user, item))
                self.asked += 1

    async def _ask(self, http: httpx.AsyncClient, due: float, number: int, user: str, item: str) -> None:
        path, body = "/v1/recommend", {"user_id": user, "k": 10}
        if is_event := bool(number % 2):
            path, body = "/v1/events", {"event_id": f"rolling-{number}", "user_id": user, "item_id": item}
        try:
            answer = await http.post(path, json=body)
        except httpx.TransportError as error:
            self.failed[type(error).__name__] += 1
            return
        if answer.status_code != 200:
            self.failed[str(answer.status_code)] += 1
        elif is_event:
            self.acknowledged.add((user, f"rolling-{number}"))
        else:
            found = answer.json()
            self.lists.append((due, found["model_version"], 1000 * (time.perf_counter() - due)))
            self.fallbacks += found["fallback_reason"] is not None
