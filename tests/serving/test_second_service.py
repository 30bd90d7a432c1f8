"""A second service over the store of one that runs."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from feature_store import EmbeddedServer
from recsys.errors import ArtifactError
from serving.settings import ServingSettings
from serving.workers.service import run_workers


class Broken(SimpleNamespace):
    """A service whose model cannot be loaded."""

    def sharing_cores(self, _: int) -> Broken:
        return self

    def writes_offline(self, **_: Any) -> bool:
        return False

    def load(self) -> None:
        raise ArtifactError("bundle: it is damaged")


def _serve(data_dir: Path) -> None:
    service: Any = Broken(settings=ServingSettings(), keys=None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            run_workers(service, 2, listener, "http://127.0.0.1", None, data_dir)
        except ArtifactError:
            raise SystemExit(3) from None


def test_one_that_cannot_start_leaves_the_store_to_the_other(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "store")
    server.ensure_running()
    try:
        process = multiprocessing.get_context("fork").Process(target=_serve, args=(tmp_path / "store",))
        process.start()
        process.join()
        assert process.exitcode == 3
        assert server.is_running()
    finally:
        server.stop()
