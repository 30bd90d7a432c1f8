"""The claim: what a service costs follows a few coefficients, and `recsys plan` knows them.

Measures, on one core: CPU of the service for an answer over synthetic catalogues of several sizes, and beside it for
the Beauty bundle with and without its fusion; memory over sizes and widths of vectors; CPU and memory of the store over
users and events; CPU and bytes of the offline store. How p99 rises with the load is taken from `serve.json`, what
workers share from `memory.json`. Then fits the coefficients and says how far each measured point is from them.

    recsys bench sizing [--bundle runs/NAME/bundle] [--sizes 10000 100000 1000000] [--write] [--json]

With `--write` the coefficients become those of `recsys plan` in this checkout. The service runs here without sockets;
all its times are multiplied by what an answer of the Beauty bundle takes in `serve.json` over what it takes here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import redis
import torch

from feature_store import Event, OnlineStore
from feature_store.consumer import OfflineConsumer
from feature_store.log import EventLog
from feature_store.offline_writer import OfflineWriter
from recsys.bundle import Bundle, write_bundle
from recsys.data.interactions import SCHEMA, Interactions
from recsys.files import write_json
from recsys.generator import GeneratorConfig, ModelConfig
from serving.app import create_app
from serving.logs import configure_logging
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.settings import ServingSettings
from serving.sizing.costs import SMALLEST, Costs
from training.random_twins import random_bundle

_RESULTS = Path(__file__).parent / "results"
_MEASURED = Path(__file__).parents[1] / "serving" / "sizing" / "measured.json"
_AT_ONCE = 64
"""Requests in progress: batches are as large as under load."""
_USERS, _WARM, _ANSWERS, _EVENTS = 3000, 256, 2048, 1000
_DIMS = (64, 384)
_STORE = ((5_000, 10), (5_000, 40), (20_000, 10), (20_000, 40))
"""Users, and events of each."""
_MIB = 1 << 20


def main(arguments: list[str]) -> dict[str, Any]:
    """Milliseconds of CPU, bytes, MiB; an error is what the model says of a point over what was measured, less 1."""
    parser = argparse.ArgumentParser(prog="recsys bench sizing", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("runs/beauty-seed-0/bundle"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="items")
    parser.add_argument("--write", action="store_true", help="make the coefficients those of `recsys plan`")
    options = parser.parse_args(arguments)

    served = {name: json.loads((_RESULTS / f"{name}.json").read_text()) for name in ("serve", "memory")}
    serve, memory = served["serve"]["metrics"]["batching"], served["memory"]["metrics"]
    real = {name: _apart("real", options.bundle.resolve(), name) for name in ("fusion", "generator")}
    sizes = [(size, _DIMS[0]) for size in options.sizes] + [(options.sizes[1], _DIMS[1])]
    synthetic = [_stored(size, dim) for size, dim in sizes]
    stores = [_apart("store", users, events) for users, events in _STORE]

    narrow = [point for point in synthetic if point["dim"] == _DIMS[0]]
    doublings = [_doublings(point["items"]) for point in narrow]
    answer_ms, per_doubling = _fit([[1.0, each] for each in doublings], [point["answer_ms"] for point in narrow])
    base_mib, item_bytes, item_bytes_per_dim = _fit(
        [[1.0, point["items"] / _MIB, point["items"] * point["dim"] / _MIB] for point in synthetic],
        [point["rss_mib"] for point in synthetic],
    )
    _, worker_item_bytes = _fit(
        [[1.0, point["items"] / _MIB] for point in narrow], [point["own_mib"] for point in narrow]
    )
    user_bytes, event_bytes = _fit(
        [[point["users"], point["users"] * point["events"]] for point in stores],
        [point["bytes"] for point in stores],
    )
    closed = min(serve["closed"].values(), key=lambda found: found["cpu_ms_an_answer"])
    # Sockets and a busy machine on the one hand, requests made by the same process on the other.
    scale = closed["cpu_ms_an_answer"] / real["fusion"]["answer_ms"]
    # The synthetic model is that of Beauty without its texts: what the real one takes more, all of its size take.
    more_ms = real["generator"]["answer_ms"] - (answer_ms + per_doubling * _doublings(real["generator"]["items"]))
    loads = sorted((float(share), found["p99_ms"]) for share, found in serve["open"].items() if float(share) < 1)
    costs = Costs(
        cpu=served["serve"]["environment"]["cpu"],
        answer_ms=scale * (answer_ms + more_ms),
        answer_ms_per_doubling=scale * max(0.0, per_doubling),
        fusion_ms=scale * (real["fusion"]["answer_ms"] - real["generator"]["answer_ms"]),
        event_ms=scale * real["fusion"]["event_ms"],
        store_read_ms=float(np.mean([point["read_ms"] for point in stores])),
        store_event_ms=float(np.mean([point["append_ms"] for point in stores])),
        offline_event_ms=float(np.mean([point["offline_ms"] for point in stores])),
        p99_ms_by_load=tuple(loads),
        service_mib=memory["rows"][1]["total_mib"] - memory["further_worker_mib"],
        worker_mib=memory["further_worker_mib"],
        item_bytes=item_bytes,
        item_bytes_per_dim=max(0.0, item_bytes_per_dim),
        worker_item_bytes=max(0.0, worker_item_bytes),
        user_bytes=max(1.0, user_bytes),
        event_bytes=event_bytes,
        offline_event_bytes=float(np.mean([point["offline_bytes"] for point in stores])),
        answer_bytes=real["fusion"]["answer_bytes"],
    )
    if options.write:
        write_json(_MEASURED, costs.model_dump(mode="json"))
    errors = {
        "answer_ms": [
            (answer_ms + per_doubling * each) / point["answer_ms"] - 1
            for each, point in zip(doublings, narrow, strict=True)
        ],
        "rss_mib": [
            (base_mib + (item_bytes + item_bytes_per_dim * point["dim"]) * point["items"] / _MIB) / point["rss_mib"] - 1
            for point in synthetic
        ],
        "store_bytes": [
            (user_bytes + event_bytes * point["events"]) * point["users"] / point["bytes"] - 1 for point in stores
        ],
    }
    return {
        "largest_error": max(abs(error) for each in errors.values() for error in each),
        "errors": {name: [round(error, 4) for error in each] for name, each in errors.items()},
        "costs": costs.model_dump(mode="json"),
        "scale": round(scale, 3),
        "beauty": real,
        "synthetic": synthetic,
        "stores": stores,
    }


def _doublings(items: int) -> float:
    return float(np.log2(items / SMALLEST))


def _fit(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Least squares of what each row says, in shares of the values: small ones count as much."""
    weights = 1 / np.asarray(values)
    found, *_ = np.linalg.lstsq(np.asarray(rows) * weights[:, None], np.ones(len(values)), rcond=None)
    return [float(value) for value in found]


def _apart(work: str, *arguments: object) -> dict[str, Any]:
    """A measurement in a process of its own, whose memory is its own."""
    # Not with this directory on the path: its scripts have names that packages have too.
    command = [sys.executable, "-P", __file__, work, *map(str, arguments)]
    threads = os.cpu_count() if work == "write" else 1
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- the service ---------------------------------------------------------------


def _real(path: str, kind: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    bundle = Bundle.load(Path(path))
    if kind == "generator":
        bundle.__dict__["fused"] = None
    return {"items": bundle.catalog.num_items, **_served(bundle, RecommenderRuntime.from_bundle(bundle))}


def _stored(size: int, dim: int) -> dict[str, Any]:
    """Written and served by processes of their own: what making a bundle takes is no part of serving it."""
    with tempfile.TemporaryDirectory(prefix="recsys-sizing-") as directory:
        _apart("write", directory, size, dim)
        return {"items": size, "dim": dim, **_apart("synthetic", directory)}


def _write(directory: str, size: int, dim: int) -> dict[str, Any]:
    # The generator of configs/beauty.yaml.
    config = GeneratorConfig(model=ModelConfig(hidden_size=128, num_layers=2, num_heads=2), beams=50)
    bundle = random_bundle(size, dim=dim, config=config)
    write_bundle(
        Path(directory) / "bundle",
        name="random",
        config={},
        catalog=bundle.catalog,
        interactions=Interactions(frame=pl.DataFrame(schema=SCHEMA), user_ids=[], num_items=size),
        item_counts=bundle.item_counts,
        embeddings=bundle.embeddings,
        semantic_ids=bundle.semantic_ids,
        tokenizer=bundle.tokenizer,
        recommender=bundle.recommender,
        report={},
    )
    return {}


def _synthetic(directory: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    bundle = Bundle.load(Path(directory) / "bundle")
    runtime = RecommenderRuntime.from_bundle(bundle)
    found = _served(bundle, runtime)
    process = psutil.Process()
    # What no other process could share by having the same files.
    own = sum(each.anonymous for each in process.memory_maps())
    return {"rss_mib": round(process.memory_info().rss / _MIB, 1), "own_mib": round(own / _MIB, 1), **found}


def _served(bundle: Bundle, runtime: RecommenderRuntime) -> dict[str, Any]:
    """CPU of this process for answers and events, HTTP parsing and sockets aside."""
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - logs are written to nobody, as long as this process lives
    configure_logging()
    random = np.random.default_rng(0)
    lengths = 1 + random.geometric(1 / 8, size=_USERS)
    ids = bundle.catalog.item_ids
    histories = {f"u{user}": [ids[i] for i in random.integers(0, len(ids), n)] for user, n in enumerate(lengths)}
    with tempfile.TemporaryDirectory() as directory:
        store = OnlineStore.embedded(Path(directory) / "store")
        app = create_app(runtime, store, ServingSettings(), seeding=Seeding(store, "1", histories))
        try:
            return asyncio.run(_ask(app, ids))
        finally:
            store.close()


async def _ask(app: Any, ids: Sequence[str]) -> dict[str, Any]:
    async with app.router.lifespan_context(app):
        while await _call(app, "GET", "/readyz") == 0:
            await asyncio.sleep(0.1)
        users = (f"u{number % _USERS}" for number in range(10**9))
        lists: Iterator[dict[str, Any]] = ({"user_id": user, "k": 10} for user in users)
        await _all(app, "/v1/recommend", islice(lists, _WARM))
        answer_ms, size = await _all(app, "/v1/recommend", islice(lists, _ANSWERS))
        events: Iterator[dict[str, Any]] = (
            {"event_id": f"e{number}", "user_id": f"u{number % _USERS}", "item_id": ids[number % len(ids)]}
            for number in range(10**9)
        )
        await _all(app, "/v1/events", islice(events, _WARM))
        event_ms, _ = await _all(app, "/v1/events", islice(events, _EVENTS))
    return {"answer_ms": round(answer_ms, 3), "event_ms": round(event_ms, 3), "answer_bytes": size}


async def _all(app: Any, path: str, bodies: Iterator[dict[str, Any]]) -> tuple[float, float]:
    """CPU milliseconds and bytes an answer, of `_AT_ONCE` clients that take turns."""
    sizes: list[int] = []
    started = time.process_time()

    async def client() -> None:
        for body in bodies:
            sizes.append(await _call(app, "POST", path, body))

    await asyncio.gather(*(client() for _ in range(_AT_ONCE)))
    used = time.process_time() - started
    assert all(sizes), "a request was refused"
    return 1000 * used / len(sizes), float(np.mean(sizes))


async def _call(app: Any, method: str, path: str, body: dict[str, Any] | None = None) -> int:
    """Bytes of the answer; 0 if it is none."""
    content = b"" if body is None else json.dumps(body).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"x-deadline-ms", b"60000")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [*headers, (b"content-length", str(len(content)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    status, size = 0, 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, size
        status = message.get("status", status)
        size += len(message.get("body", b"")) + sum(len(k) + len(v) + 4 for k, v in message.get("headers", ()))

    await app(scope, receive, send)
    return size if status == 200 else 0


# ---- the store -----------------------------------------------------------------


def _store(users: int, events: int) -> dict[str, Any]:
    """A store of its own with so many users, who have so many events each."""
    with tempfile.TemporaryDirectory() as directory, _embedded(Path(directory)) as (store, server, process):
        empty = int(server.info("memory")["used_memory"])
        random = np.random.default_rng(0)
        log = (
            Event(
                event_id=random.bytes(16).hex(),
                user_id=f"user-{user}",
                item_id=f"item-{random.integers(10_000)}",
                event_type="view",
                timestamp=1.7e9 + number,
            )
            for number, user in product(range(events), range(users))
        )
        append_s = -_cpu_s(process)
        while batch := list(islice(log, 100)):
            store.append_events(batch)
        append_s += _cpu_s(process)
        read_s = -_cpu_s(process)
        for user in range(5000):
            store.user_state(f"user-{user % users}")
        read_s += _cpu_s(process)
        offline = Path(directory) / "offline"
        with OfflineWriter(offline) as writer:
            offline_s = -time.process_time()
            written = OfflineConsumer(EventLog(store), writer).catch_up()
            offline_s += time.process_time()
        assert written == users * events
        return {
            "users": users,
            "events": events,
            "bytes": int(server.info("memory")["used_memory"]) - empty,
            "append_ms": round(1000 * append_s / (users * events), 4),
            "read_ms": round(1000 * read_s / 5000, 4),
            "offline_ms": round(1000 * offline_s / (users * events), 4),
            "offline_bytes": round(sum(file.stat().st_size for file in offline.rglob("*.parquet")) / written, 1),
        }


@contextmanager
def _embedded(directory: Path) -> Iterator[tuple[OnlineStore, Any, psutil.Process]]:
    store = OnlineStore.embedded(directory / "store")
    try:
        server = redis.Redis(unix_socket_path=str(next((directory / "store").rglob("*.sock"))))
        yield store, server, psutil.Process(int(server.info("server")["process_id"]))
    finally:
        store.close()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    part, *values = sys.argv[1:]
    measures: dict[str, Callable[..., dict[str, Any]]] = {
        "real": _real,
        "write": _write,
        "synthetic": _synthetic,
        "store": _store,
    }
    print(json.dumps(measures[part](*(int(value) if value.isdecimal() else value for value in values))))
