"""`recsys ab` of a bundle against a real service over HTTP, on a free port, with and without keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from dashboard_page import served
from toy_bundle import NUM_ITEMS, write_toy_bundle
from typer.testing import CliRunner

from recsys.cli.main import build_app
from serving.guard.keys import KeyRing, create_key


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 120 users whom no bundle knows."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    count = 120
    items = np.concatenate([random.choice(NUM_ITEMS, 6, replace=False) for _ in range(count)])
    pl.DataFrame(
        {
            "user_id": np.repeat([f"new{user}" for user in range(count)], 6),
            "item_id": [f"i{item}" for item in items],
            "timestamp": np.tile(np.arange(6) * 600, count),
        }
    ).write_parquet(folder / "interactions.parquet")
    ids = [f"i{item}" for item in range(NUM_ITEMS)]
    pl.DataFrame({"item_id": ids, "title": ids}).write_parquet(folder / "items.parquet")
    return folder


def ab(first: Path, url: str, data: Path, out: Path, *options: str) -> tuple[int, str, dict[str, Any] | None]:
    """Exit code, stderr and the report of `recsys ab`."""
    arguments = [str(first), url, "--log", str(data), "--pages", "2", "--sessions", "20", "--out", str(out), *options]
    result = CliRunner().invoke(build_app(), ["ab", *arguments])
    report = out / "report.json"
    return result.exit_code, result.stderr, json.loads(report.read_text()) if report.is_file() else None


def test_a_service_of_the_same_bundle_shows_the_same_lists(tmp_path: Path, data: Path) -> None:
    """What is deployed is what was built: over HTTP every user gets what the bundle gives in this process."""
    with served(tmp_path / "service") as url:
        bundle = tmp_path / "service" / "run-0" / "bundle"
        code, errors, found = ab(bundle, url, data, tmp_path / "same")
        assert code == 0, errors
        assert found is not None
        assert found["facts"]["treatment"]["version"] == found["facts"]["control"]["version"] is not None
        assert found["facts"]["treatment"]["degraded_lists"] == 0
        assert found["primary"]["effect"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert found["decision"] == "no_difference"
        assert "Both arms are the same model" in found["cautions"][0]

        write_toy_bundle(tmp_path / "other", seed=5)
        code, errors, found = ab(tmp_path / "other", url, data, tmp_path / "differs")
        assert code == 0, errors
        assert found is not None
        # Users take other items then, though perhaps as many in all.
        assert found["primary"]["effect"]["standard_error"] > 0


def test_a_service_with_keys_says_what_is_missing(tmp_path: Path, data: Path) -> None:
    key = create_key(tmp_path / "keys.json", "tester", "read")
    with served(tmp_path / "service", KeyRing(tmp_path / "keys.json")) as url:
        bundle = tmp_path / "service" / "run-0" / "bundle"
        for options, message in (((), "answered 401"), (("--key", "wrong"), "answered 401")):
            code, errors, found = ab(bundle, url, data, tmp_path / "refused", *options)
            assert (code, found) == (1, None)
            assert message in errors
            assert "give its key with --key or RECSYS_API_KEY" in errors
        code, errors, found = ab(bundle, url, data, tmp_path / "let-in", "--key", key)
        assert code == 0, errors
        assert found is not None
