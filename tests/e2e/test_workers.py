"""A service of several processes: real workers over one port, killed, stopped and changed while it answers."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import httpx
import psutil
import pytest
from serving_process import Service, serving
from toy_bundle import write_toy_bundle

from feature_store import EmbeddedServer

NUM_WORKERS = 2
HIDDEN_SIZE = 1024
"""Weights of tens of megabytes, large enough to be found in a process's memory."""
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Made once: it takes longer than a request."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers over one of two runs. Tests leave it as they find it."""
    root = tmp_path_factory.mktemp("workers")
    for seed in range(2):
        write_toy_bundle(root / f"run-{seed}" / "bundle", seed=seed, hidden_size=HIDDEN_SIZE)
    run = root / "run-0"
    with serving(run, "--workers", str(NUM_WORKERS)) as service:
        yield service
    EmbeddedServer(run / "store").stop()


def _version(service: Service, name: str) -> str:
    manifest = service.log.parents[1] / name / "bundle" / "manifest.json"
    return str(json.loads(manifest.read_text())["model_version"])


def _change(service: Service, action: str, **body: object) -> dict[str, str]:
    response = _anew(service, "POST", f"/v1/admin/models:{action}", json=body)
    assert response.status_code == 200, response.text
    return {model["model_version"]: model["state"] for model in response.json()["models"]}


def _anew(service: Service, method: str, path: str, **request: Any) -> httpx.Response:
    """A request over a connection of its own, which any worker may take; retried if that was one which died."""
    with httpx.Client(transport=httpx.HTTPTransport(verify=NO_TLS, retries=2), timeout=30) as client:
        for _ in range(3):
            with contextlib.suppress(httpx.TransportError):
                return client.request(method, service.url + path, **request)
    raise AssertionError("no worker answers")


def _metric(service: Service, name: str) -> dict[str, float]:
    """The values of a metric by process; of those with further labels, their sum."""
    found: dict[str, float] = {}
    for line in _anew(service, "GET", "/metrics").text.splitlines():
        if line.startswith((name + "{", name + " ", name + ",")):
            labels, _, value = line.rpartition(" ")
            process = labels.partition('worker="')[2].partition('"')[0]
            found[process] = found.get(process, 0.0) + float(value)
    return found


def _wait(done: Callable[[], bool], within_s: float = 60) -> None:
    ends = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.05)


def _wait_for_all(service: Service) -> None:
    _wait(lambda: _metric(service, "recsys_workers") == {"": NUM_WORKERS})


def test_workers_share_a_port_a_store_and_their_metrics(service: Service) -> None:
    assert set(service.children()) == {"0", "1", "offline"}

    def keep_asking(_: int) -> None:
        for _ in range(20):
            assert _anew(service, "GET", "/v1/model").status_code == 200

    name = 'recsys_request_seconds_count{method="GET",route="/v1/model"'
    before = _metric(service, name)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(keep_asking, range(8)))
    after = _metric(service, name)
    gained = {worker: after[worker] - before.get(worker, 0) for worker in ("0", "1")}
    assert sum(gained.values()) == 160
    assert min(gained.values()) > 0
    assert _metric(service, "recsys_offline_running")["offline"] == 1
    traffic = _anew(service, "GET", "/v1/traffic").json()
    (asked,) = [route for route in traffic["routes"] if route["route"] == "/v1/model"]
    assert asked["seconds"]["count"] == sum(gained.values())
    assert traffic["store"]["offline_running"]

    for number in range(8):
        event = {"event_id": f"shared-{number}", "user_id": "both", "item_id": f"i{number}"}
        assert _anew(service, "POST", "/v1/events", json=event).json()["accepted"] == 1
        history = _anew(service, "GET", "/v1/users/both").json()["history"]
        assert len(history) == number + 1
        assert _anew(service, "POST", "/v1/events", json=event).json()["duplicates"] == 1


def test_clients_that_come_at_once_and_stay_are_shared_among_the_workers(service: Service) -> None:
    name = 'recsys_request_seconds_count{method="GET",route="/v1/model"'
    before = _metric(service, name)
    address = (httpx.URL(service.url).host, httpx.URL(service.url).port)
    clients = [socket.create_connection(address, timeout=30) for _ in range(16)]
    for client in clients:
        client.sendall(b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\n\r\n")
    for client in clients:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
    after = _metric(service, name)
    assert min(after[worker] - before.get(worker, 0) for worker in ("0", "1")) >= 2


def test_weights_are_in_memory_once(service: Service) -> None:
    weights = service.log.parent / "bundle" / "generator" / "model.safetensors"
    size = weights.stat().st_size
    for worker in ("0", "1"):
        # Not the bundle's own file: a service reads copies of its own.
        maps = [
            found
            for found in service.children()[worker].memory_maps()
            if found.path.endswith("/generator/model.safetensors")
        ]
        resident, own = sum(found.rss for found in maps), sum(found.private_dirty for found in maps)
        share = sum(found.pss for found in maps)
        assert resident > 0.9 * size, "every weight was read at the start"
        assert own == 0, "none was copied"
        assert share < 0.6 * resident, "of each page a worker has half"


def test_the_trie_is_a_map_of_one_file_in_every_worker(service: Service) -> None:
    copies = set()
    for worker in ("0", "1"):
        maps = service.children()[worker].memory_maps(grouped=False)
        (trie,) = {found.path for found in maps if found.path.endswith("/generator/trie.safetensors")}
        assert sum(found.private_dirty for found in maps if found.path == trie) == 0, "none was copied"
        copies.add(trie)
    assert len(copies) == 1


def test_metrics_are_well_formed(service: Service) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = list(text_string_to_metric_families(_anew(service, "GET", "/metrics").text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    series = [(sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples]
    assert len(series) == len(set(series))


def test_a_change_of_models_reaches_every_worker_before_it_is_answered(service: Service) -> None:
    old, new = _version(service, "run-0"), _version(service, "run-1")
    assert _change(service, "load", bundle="run-1") == {old: "active", new: "loaded"}
    try:
        for wanted in (new, old, new):
            _change(service, "activate", model_version=wanted)
            for _ in range(10):
                assert _anew(service, "GET", "/v1/model").json()["model_version"] == wanted
        for worker in ("0", "1"):
            before = _metric(service, "recsys_process_restarts_total")
            service.children()[worker].kill()
            _wait(lambda before=before: _metric(service, "recsys_process_restarts_total") != before)
            _wait_for_all(service)
            for _ in range(10):
                assert _anew(service, "GET", "/v1/model").json()["model_version"] == new
        assert _change(service, "rollback") == {old: "active", new: "previous"}
    finally:
        _change(service, "activate", model_version=old)
        _change(service, "unload", model_version=new)
    refused = _anew(service, "POST", "/v1/admin/models:activate", json={"model_version": new})
    assert refused.status_code == 409
    assert "is in memory" in refused.json()["detail"]


def test_a_bundle_that_cannot_be_served_is_refused_by_all(service: Service) -> None:
    bundle = service.log.parents[1] / "poisoned"
    write_toy_bundle(bundle, seed=5)
    (bundle / "catalog.parquet").write_bytes(b"damaged")
    refused = _anew(service, "POST", "/v1/admin/models:load", json={"bundle": "poisoned"})
    assert refused.status_code == 422
    assert "catalog.parquet was changed" in refused.json()["detail"]
    for _ in range(10):
        assert len(_anew(service, "GET", "/v1/admin/models").json()["models"]) == 1


def test_swaps_under_load_fail_no_request_and_no_answer_mixes_models(service: Service) -> None:
    versions = [_version(service, "run-0"), _version(service, "run-1")]
    histories = [[f"i{item}"] for item in range(4)]

    def ask(client: httpx.Client, history: list[str]) -> tuple[str, tuple[str, ...]]:
        response = client.post("/v1/recommend", json={"history": history, "k": 5}, headers={"X-Deadline-Ms": "20000"})
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["source"] == "generator", answer
        return answer["model_version"], tuple(item["item_id"] for item in answer["items"])

    _change(service, "load", bundle="run-1")
    expected = {}
    for version in versions:
        _change(service, "activate", model_version=version)
        with httpx.Client(base_url=service.url, timeout=30) as client:
            expected |= {(version, tuple(history)): ask(client, history)[1] for history in histories}
    done = Event()

    def keep_asking(history: list[str]) -> set[str]:
        seen = set()
        with httpx.Client(base_url=service.url, timeout=30) as client:
            while not done.is_set():
                version, items = ask(client, history)
                assert items == expected[version, tuple(history)]
                seen.add(version)
        return seen

    with ThreadPoolExecutor(len(histories)) as pool:
        asking = [pool.submit(keep_asking, history) for history in histories]
        for turn in range(20):
            time.sleep(0.05)
            _change(service, "activate", model_version=versions[turn % 2])
        done.set()
        seen = set().union(*(future.result() for future in asking))
    assert seen == set(versions)
    _change(service, "activate", model_version=versions[0])
    _change(service, "unload", model_version=versions[1])


def test_an_item_is_removed_and_put_back_in_every_worker(service: Service) -> None:
    item = _anew(service, "GET", "/v1/items/i9").json()

    def follow(version: int) -> None:
        _wait(lambda: {_metric(service, "recsys_catalog_version").get(worker) for worker in "01"} == {version})

    def answers() -> list[tuple[int, bool]]:
        found = []
        for _ in range(12):
            listed = _anew(service, "POST", "/v1/recommend", json={"history": ["i1"], "k": 40}).json()["items"]
            status = _anew(service, "GET", "/v1/items/i9").status_code
            found.append((status, "i9" in [each["item_id"] for each in listed]))
        return found

    follow(_anew(service, "DELETE", "/v1/items/i9").json()["catalog_version"])
    assert set(answers()) == {(404, False)}
    body = {name: item[name] for name in ("title", "categories", "attributes")}
    follow(_anew(service, "PUT", "/v1/items/i9", json=body).json()["catalog_version"])
    assert set(answers()) == {(200, True)}


def test_a_worker_that_hangs_is_left_out_of_the_metrics(service: Service) -> None:
    stopped = service.children()["1"]
    stopped.suspend()
    try:
        assert set(_metric(service, "recsys_requests_in_flight")) <= {"0", "offline"}
    finally:
        stopped.resume()
    _wait_for_all(service)


def test_a_store_that_is_stopped_for_a_while_takes_lists_from_nobody_and_events_are_refused(service: Service) -> None:
    event = {"event_id": "1", "user_id": "patient", "item_id": "i1"}
    assert _anew(service, "POST", "/v1/events", json=event).json()["accepted"] == 1
    store = psutil.Process(service.store_process())
    assert store.ppid() == service.process.pid, "one process owns the store"
    store.suspend()
    try:
        asked = {"user_id": "patient", "k": 3}
        for _ in range(4):
            answer = _anew(service, "POST", "/v1/recommend", json=asked)
            assert (answer.status_code, answer.json()["fallback_reason"]) == (200, "store_unavailable")
        refused = _anew(service, "POST", "/v1/events", json=event | {"event_id": "2"})
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        assert _anew(service, "GET", "/readyz").json()["status"] == "degraded"
    finally:
        store.resume()
    # It is the same server: one that hangs is not doubled. Each worker finds out by itself that it is back.
    both = [event, event | {"event_id": "2"}]
    _wait(lambda: {_anew(service, "POST", "/v1/events", json=both).status_code for _ in range(8)} == {200})
    assert service.store_process() == store.pid
    assert len(_anew(service, "GET", "/v1/users/patient").json()["history"]) == 2
