"""A real service for a real browser: bundles of made-up films, a store of its own, and what a page must not do."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from toy_bundle import write_toy_bundle

from feature_store import OnlineStore
from feature_store.consumer import OfflineConsumer
from feature_store.log import EventLog
from feature_store.offline import OfflineStore
from feature_store.offline_writer import OfflineWriter
from recsys.bundle import Bundle
from serving.app import create_app
from serving.guard.keys import KeyRing
from serving.offline import OfflineExport
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.settings import ServingSettings
from serving.slate_writer import SlateWriter

CHROMIUM = os.environ.get("RECSYS_CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def served(folder: Path, keys: KeyRing | None = None, *, further: int = 0, **settings: Any) -> Iterator[str]:
    """The URL of a service over `run-0`; `further` runs can be loaded."""
    for seed in range(1 + further):
        write_toy_bundle(folder / f"run-{seed}" / "bundle", seed=seed)
    bundle = Bundle.load(folder / "run-0" / "bundle")
    store = OnlineStore.embedded(folder / "store")
    with OfflineWriter(folder / "offline") as writer:  # lists are logged where somebody has read the log
        OfflineConsumer(EventLog(store), writer).catch_up()
    app = create_app(
        RecommenderRuntime.from_bundle(bundle),
        store,
        ServingSettings.model_validate(settings),
        seeding=Seeding(store, bundle.histories_version, bundle.users),
        keys=keys,
        bundles=folder,
        offline=OfflineExport(store, folder / "offline", look_s=0.2),
        slates=SlateWriter(store),
        outcomes=OfflineStore(folder / "offline"),
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    started = threading.Event()
    startup = server.startup

    async def announce(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = announce  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    assert started.wait(60)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def watched(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page that must load without errors and only from our own address."""
    page = browser.new_page(**({"viewport": {"width": 1440, "height": 1000}} | options))
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            problems.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text
            else None
        ),
    )
    page.on("request", lambda request: problems.append(request.url) if not request.url.startswith(url) else None)
    yield page
    page.close()
    assert problems == []
