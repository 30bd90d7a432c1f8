"""The claim: concurrent requests that share calls of the model are served faster, on time, and overload does no harm.

`recsys serve` serves a bundle with a worker a core and its store, this process asks over loopback, all on the same
cores. Open loop: requests leave at a constant rate whatever becomes of those before, and each counts from the moment at
which it was due, so that a server that stalls cannot hide it. Closed loop: a number of clients, each of whom asks again
when it has its answer.

    recsys bench serve [--bundle runs/NAME/bundle] [--seconds 10] [--json]

Then the same against what a user would assemble: FastAPI around transformers' `generate` under a prefix function, over
a causal LM of the same size and the same semantic IDs (`training.transformers_twin`); its weights are random, which
changes no times, and it reads histories from the request, without a store.

Every request is of another user of the bundle, read from the store, k = 10, and must be answered within `--deadline`.
What counts as good is an answer in time, by the bundle's best source, not a fallback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from training.served import Served, served_bundle, served_by

_K = 10
_RATES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5)
"""Shares of the closed loop's throughput, at which the open loop asks."""
_OVERLOAD = 3.0
_MORE_CLIENTS = (8, 128)
"""Of further closed loops: throughput at rising concurrency."""
_MOST_CONNECTIONS = 1024


def main(arguments: list[str]) -> dict[str, Any]:
    """`throughput` is the most answers a second of a closed loop; milliseconds are of good answers, from when they
    were due.

    `batching_speedup` is between services with and without shared calls, at `--clients`; `_cpu` compares the processor
    time an answer, which other processes disturb least. `goodput_at_3x` is a share of the most good answers a second at
    any rate of the open loop, whose rates are shares of `throughput`.
    """
    parser = argparse.ArgumentParser(prog="recsys bench serve", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("runs/beauty-seed-0/bundle"))
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--clients", type=int, default=32, help="of the closed loop")
    parser.add_argument("--deadline", type=float, default=500, help="milliseconds")
    parser.add_argument("--users", type=int, default=20_000, help="that take turns")
    parser.add_argument("--generate-seconds", type=float, default=30, help="of the comparison; 0 leaves it out")
    options = parser.parse_args(arguments)

    bundle = options.bundle.resolve()
    requests = _Requests(bundle, options.users, options.deadline)
    measured: dict[str, Any] = {}
    for name, max_batch in (("batching", 32), ("single", 1)):
        # A worker a core.
        with served_bundle(bundle, workers=0, settings=f"batching: {{max_batch: {max_batch}}}") as served:
            measured[name] = asyncio.run(_measure(_Service.of(served), requests, options))
    with_batches, without = (measured[name]["closed"] for name in ("batching", "single"))
    same = f"{options.clients}"
    found: dict[str, Any] = {
        "batching_speedup": with_batches[same]["per_second"] / without[same]["per_second"],
        "batching_speedup_cpu": without[same]["cpu_ms_an_answer"] / with_batches[same]["cpu_ms_an_answer"],
        "throughput": _most(with_batches),
        "p50_ms_alone": measured["batching"]["alone"]["p50_ms"],
        "p99_ms_at_half_load": measured["batching"]["open"]["0.5"]["p99_ms"],
        "goodput_at_3x": _goodput_share(measured["batching"]),
    }
    if options.generate_seconds:
        # Not with this directory on the path: its scripts have names that packages have too.
        with served_by(["-P", __file__, str(bundle)]) as served:
            service = _Service.of(served)
            measured["generate"] = {
                "closed": asyncio.run(
                    _concurrencies(service, requests.histories(), options.clients, options.generate_seconds)
                ),
                "alone": asyncio.run(_alone(service, requests.histories())),
            }
        plain = measured["generate"]
        found["speedup_vs_generate"] = found["throughput"] / _most(plain["closed"])
        found["speedup_vs_generate_same_clients"] = (
            with_batches[same]["per_second"] / plain["closed"][same]["per_second"]
        )
        found["speedup_vs_generate_cpu"] = _least_cpu(plain["closed"]) / _least_cpu(with_batches)
        found["speedup_vs_generate_alone"] = plain["alone"]["p50_ms"] / measured["batching"]["alone"]["p50_ms"]
    return {
        **found,
        "settings": {
            "bundle": bundle.parent.name,
            "clients": options.clients,
            "deadline_ms": options.deadline,
            "seconds": options.seconds,
            "cores": os.cpu_count(),
        },
        **measured,
    }


def _most(closed: dict[str, Any]) -> float:
    """Answers a second of the closed loop that got most."""
    return float(max(found["per_second"] for found in closed.values()))


def _least_cpu(closed: dict[str, Any]) -> float:
    """Milliseconds of processors an answer, in the closed loop that took least."""
    return float(min(found["cpu_ms_an_answer"] for found in closed.values()))


def _goodput_share(measured: dict[str, Any]) -> float:
    """Good answers a second under overload, as a share of the most at any rate."""
    rates = measured["open"]
    peak = max(found["good_per_second"] for found in rates.values())
    return float(rates[f"{_OVERLOAD:g}"]["good_per_second"] / peak)


# ---- requests ----------------------------------------------------------------


class _Requests:
    """Bodies of HTTP requests, another user each time."""

    def __init__(self, bundle: Path, users: int, deadline_ms: float) -> None:
        import polars as pl

        known = pl.read_parquet(bundle / "histories.parquet").sample(fraction=1.0, shuffle=True, seed=0).head(users)
        self._users: list[str] = known["user_id"].to_list()
        self._histories: list[list[str]] = known["item_ids"].to_list()
        self._deadline = f"X-Deadline-Ms: {deadline_ms:g}\r\n"

    def by_user(self, *, in_time: bool) -> Iterator[bytes]:
        """What the service is asked: for an answer before the deadline, or for one that may take a minute."""
        deadline = self._deadline if in_time else "X-Deadline-Ms: 60000\r\n"
        return cycle([_post({"user_id": user, "k": _K}, deadline) for user in self._users])

    def histories(self) -> Iterator[bytes]:
        """The same for a service without a store."""
        return cycle([_post({"history": history[-50:], "k": _K}) for history in self._histories])


def _post(body: dict[str, Any], headers: str = "") -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@dataclass
class _Outcomes:
    """What came back."""

    deadline_ms: float
    seconds: float = 0.0
    good_ms: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, answer: bytes | None, milliseconds: float) -> None:
        """One request's answer, None when the connection broke, so long after it was due."""
        if answer is None:
            self.kinds["broken"] += 1
        elif not answer.startswith(b"HTTP/1.1 200"):
            self.kinds[answer[9:12].decode()] += 1
        elif b'"degraded":true' in answer:
            self.kinds["fallback"] += 1
        elif milliseconds > self.deadline_ms:
            self.kinds["late"] += 1
        else:
            self.kinds["good"] += 1
            self.good_ms.append(milliseconds)

    def summary(self) -> dict[str, Any]:
        """Rates and quantiles."""
        quantiles = np.percentile(self.good_ms, [50, 95, 99]) if self.good_ms else [float("nan")] * 3
        return {
            "good_per_second": self.kinds["good"] / self.seconds,
            **{f"p{q}_ms": round(float(value), 2) for q, value in zip((50, 95, 99), quantiles, strict=True)},
            "answers": dict(self.kinds),
        }


# ---- a client -----------------------------------------------------------------


class _Connection(asyncio.Protocol):
    """One request at a time over a connection that stays."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._length = -1
        self._answer: asyncio.Future[bytes | None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes) -> asyncio.Future[bytes | None]:
        """Send; the whole answer comes, or None when the connection breaks."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._length < 0:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._received[:end]).lower()
            (length,) = [line for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
            self._length = end + 4 + int(length.split(b":")[1])
        if len(self._received) >= self._length:
            answer, self._received, self._length = bytes(self._received), bytearray(), -1
            self._settle(answer)

    def connection_lost(self, _: Exception | None) -> None:
        self._settle(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _settle(self, answer: bytes | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)


class _Client:
    """Connections to one port, opened when all others are in use."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: deque[_Connection] = deque()
        self._all: list[_Connection] = []

    async def ask(self, request: bytes) -> bytes | None:
        """One request and its answer; None where there was no connection to be had, or it broke."""
        while self._free and not self._free[-1].is_open:
            self._free.pop()
        if self._free:
            connection = self._free.pop()
        elif sum(connection.is_open for connection in self._all) >= _MOST_CONNECTIONS:
            return None
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
            self._all.append(connection)
        answer = await connection.ask(request)
        self._free.append(connection)
        return answer

    def close(self) -> None:
        """Close all connections."""
        for connection in self._all:
            connection.close()


async def _measure(service: _Service, requests: _Requests, options: argparse.Namespace) -> dict[str, Any]:
    bodies, hurried = requests.by_user(in_time=False), requests.by_user(in_time=True)
    await _closed(service, bodies, options.clients, min(2.0, options.seconds), warm=options.clients)
    alone = await _alone(service, bodies)
    closed = await _concurrencies(service, bodies, options.clients, options.seconds)
    rates = {}
    for share in (*_RATES, _OVERLOAD):
        rate = share * _most(closed)
        rates[f"{share:g}"] = {
            "rate": rate,
            **await _open(service, hurried, rate, options.seconds, deadline_ms=options.deadline),
        }
    return {"alone": alone, "closed": closed, "open": rates}


async def _concurrencies(
    service: _Service, bodies: Iterator[bytes], clients: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Closed loops of fewer and more clients, and of `clients`, each warmed up by one request a client."""
    return {
        str(number): await _closed(service, bodies, number, seconds, warm=number)
        for number in sorted({clients, *_MORE_CLIENTS})
    }


async def _alone(service: _Service, bodies: Iterator[bytes], count: int = 30) -> dict[str, Any]:
    """One client that asks `count` times."""
    client, outcomes = _Client(service.port), _Outcomes(deadline_ms=float("inf"))
    started = time.perf_counter()
    for _ in range(count):
        sent = time.perf_counter()
        outcomes.add(await client.ask(next(bodies)), 1000 * (time.perf_counter() - sent))
    outcomes.seconds = time.perf_counter() - started
    client.close()
    return outcomes.summary()


async def _closed(
    service: _Service, bodies: Iterator[bytes], clients: int, seconds: float, warm: int = 0
) -> dict[str, Any]:
    """`clients` that each ask again when they have their answer."""
    client, outcomes = _Client(service.port), _Outcomes(deadline_ms=float("inf"))
    for _ in range(warm):
        await client.ask(next(bodies))
    started, used = time.perf_counter(), service.cpu_s()
    ends = started + seconds

    async def one() -> None:
        while (sent := time.perf_counter()) < ends:
            answer = await client.ask(next(bodies))
            now = time.perf_counter()
            outcomes.add(answer, 1000 * (now - sent))

    await asyncio.gather(*(one() for _ in range(clients)))
    outcomes.seconds = time.perf_counter() - started
    client.close()
    found = outcomes.summary()
    cpu_ms = 1000 * (service.cpu_s() - used) / max(1, outcomes.kinds["good"])
    return {"per_second": found.pop("good_per_second"), "cpu_ms_an_answer": round(cpu_ms, 2), **found}


async def _open(
    service: _Service, bodies: Iterator[bytes], rate: float, seconds: float, deadline_ms: float
) -> dict[str, Any]:
    """Requests at a constant rate; each counts from the moment at which it was due."""
    client, outcomes = _Client(service.port), _Outcomes(deadline_ms=deadline_ms)
    started = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    late_ms: list[float] = []

    async def one(due: float) -> None:
        answer = await client.ask(next(bodies))
        outcomes.add(answer, 1000 * (time.perf_counter() - due))

    for place in range(int(rate * seconds)):
        due = started + place / rate
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        late_ms.append(1000 * (time.perf_counter() - due))
        task = asyncio.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if wait <= 0:
            await asyncio.sleep(0)
    outcomes.seconds = time.perf_counter() - started
    if tasks:
        await asyncio.wait(tasks, timeout=30)
    client.close()
    return {**outcomes.summary(), "client_behind_p99_ms": round(float(np.percentile(late_ms, 99)), 2)}


# ---- services -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Service:
    port: int
    process: psutil.Process

    @classmethod
    def of(cls, served: Served) -> _Service:
        """What is asked of a service."""
        return cls(port=int(served.url.rpartition(":")[2]), process=served.process)

    def cpu_s(self) -> float:
        """Seconds of processors that its processes have used, the store aside."""
        times = [
            process.cpu_times()
            for process in (self.process, *self.process.children(recursive=True))
            if "python" in process.name() or "recsys" in process.name()
        ]
        return float(sum(used.user + used.system for used in times))


def _serve_plain(bundle: Path) -> None:
    """The process of the service around `generate`."""
    import uvicorn

    from serving.server import listen

    listener = listen("127.0.0.1", 0)
    app = _plain_service(bundle)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, loop="asyncio", log_config=None, access_log=False)).run(sockets=[listener])


def _plain_service(path: Path) -> Any:
    """FastAPI around `generate`, with as many calls at a time as there are cores, one thread each."""
    import threading

    import torch
    from fastapi import FastAPI

    from recsys.bundle import Bundle
    from recsys.data import Sequences
    from recsys.generator.flat import FlatModel
    from training.random_twins import history_prompts, random_recommender
    from training.transformers_twin import PrefixTable, causal_lm, generate, item_tokens

    torch.set_num_threads(1)
    bundle = Bundle.load(path)
    config, codes = bundle.recommender.config, bundle.semantic_ids.codes
    flat = random_recommender(
        "flat",
        codes,
        bundle.semantic_ids.codebook_sizes,
        hidden_size=config.model.hidden_size,
        num_layers=config.model.num_layers,
        max_history=config.model.max_history,
        beams=config.beams,
    )
    assert isinstance(flat.model, FlatModel)
    model = flat.model
    lm, table = causal_lm(model), PrefixTable(item_tokens(model).numpy())
    cores = threading.Semaphore(os.cpu_count() or 1)
    app = FastAPI()

    @app.post("/v1/recommend")
    def recommend(request: dict[str, Any]) -> dict[str, Any]:
        items = bundle.catalog.index_of(request["history"])
        prompts = history_prompts(model, Sequences.from_lists([items[items >= 0]]))
        with cores:
            torch.set_num_threads(1)
            found, scores = generate(lm, table, prompts, levels=codes.shape[1], k=request["k"], beams=config.beams)
        assert scores is not None
        ids = bundle.catalog.item_ids
        return {
            "items": [
                {"item_id": ids[item], "score": score}
                for item, score in zip(found[0].tolist(), scores[0].tolist(), strict=True)
            ]
        }

    return app


if __name__ == "__main__":
    _serve_plain(Path(sys.argv[1]))
